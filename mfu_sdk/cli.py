"""`mfu`: a thin shell over the library.

Exit codes: 0 done, 1 the answer is bad (a check failed), 2 wrong usage. Errors are one line.
"""

from __future__ import annotations

import importlib
import json
import shutil
import sys
import time
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import click

import mfu_sdk
from mfu_sdk import atomic
from mfu_sdk.errors import CalibrationError, ConfigurationError, DeliveryError, MfuError, MissingDependencyError
from mfu_sdk.integrations.script import Ended


class _Commands(click.Group):
    """Turns errors of ours into one line and exit code 2, and Ctrl-C into 130 without a traceback."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().main(*args, **kwargs)
        except Ended as program:
            ended = program
        # Out of click's reach, which has ways of its own to end a process; and after the handler, whose exception
        # would become the context of this one.
        return ended.finish()

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except MfuError as error:
            click.echo(f"mfu: {error}", err=True)
            ctx.exit(1 if isinstance(error, CalibrationError | DeliveryError) else 2)
        except KeyboardInterrupt:
            # 128 + SIGINT, as shells have it; what was under way has unwound by now.
            click.echo("mfu: interrupted", err=True)
            ctx.exit(130)
        except BrokenPipeError:
            # The reader went away (`mfu report | head`): not an error of ours.
            sys.stderr.close()
            ctx.exit(0)


_CLICKHOUSE = "A ClickHouse server in its place: http[s]://[USER[:PASSWORD]@]HOST[:PORT]."


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(mfu_sdk.__version__, prog_name="mfu")
def main() -> None:
    """Whether allocated GPUs do useful arithmetic, and why not."""


@main.command()
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), default=Path("mfu-demo.html"),
    show_default=True, help="Where the page is written.",
)  # fmt: skip
def demo(output: Path) -> None:
    """Train a small GPT on real text on whatever device is here, and show what its provider would see."""
    _provider("report")
    from mfu_sdk.demo import run

    run(output)


@main.command()
@click.option("--data", type=click.Path(file_okay=False, path_type=Path), help="A folder that the store lies in.")
@click.option("--clickhouse", metavar="URL", help=_CLICKHOUSE)
@click.option("--http", default="127.0.0.1:4318", show_default=True, help="HOST:PORT for OTLP over HTTP.")
@click.option("--web", default="127.0.0.1:8080", show_default=True, help="HOST:PORT for the page and the JSON API.")
@click.option("--grpc", help="HOST:PORT for OTLP over gRPC, 4317 by custom; none unless given.")
@click.option("--tokens", type=click.Path(dir_okay=False, path_type=Path), help="Who may send and read, and as whom.")
@click.option("--prices", type=click.Path(path_type=Path), multiple=True, help="Prices and costs, YAML or CSV.")
@click.option("--inventory", type=click.Path(path_type=Path), multiple=True, help="What is owned, and who holds it.")
@click.option(
    "--retention", default="14d,90d,3y", show_default=True, help="How long spans, five-minute and hourly sums are kept."
)
@click.option("--tls-cert", type=click.Path(dir_okay=False, path_type=Path), help="A certificate and its chain, PEM.")
@click.option("--tls-key", type=click.Path(dir_okay=False, path_type=Path), help="The certificate's key, PEM.")
@click.option(
    "--max-spans-per-s", type=click.FloatRange(min=0, min_open=True), help="Of each tenant; no limit unless given."
)
def serve(
    data: Path | None, clickhouse: str | None, http: str, web: str, grpc: str | None, tokens: Path | None,
    prices: tuple[Path, ...], inventory: tuple[Path, ...], retention: str, tls_cert: Path | None, tls_key: Path | None,
    max_spans_per_s: float | None,
) -> None:  # fmt: skip
    """Receive OTLP, store it, and serve the fleet's page and JSON API. Loopback unless told otherwise.

    The store is a folder (--data) or a ClickHouse server (--clickhouse); its user and password may stand in
    CLICKHOUSE_USER and CLICKHOUSE_PASSWORD, where no list of processes shows them.

    The addresses are printed once all of them listen; port 0 takes a free one. Stops on Ctrl-C or SIGTERM. --prices
    and --inventory take a file or a directory, and may be repeated; they are read again when they change.
    """
    if (tls_cert is None) != (tls_key is None):
        raise click.UsageError("--tls-cert and --tls-key belong together; give both or neither")
    tls = None if tls_cert is None or tls_key is None else (tls_cert, tls_key)
    serving = _provider("serve")
    server = serving.Server(
        _place("mfu serve", data, clickhouse), http=_address("--http", http), web=_address("--web", web),
        grpc=None if grpc is None else _address("--grpc", grpc), tokens=tokens, prices=prices, inventory=inventory,
        retention=_provider("schema").parse_retention(retention), tls=tls,
        limits=serving.Limits(spans_per_s=max_spans_per_s),
    )  # fmt: skip
    server.serve_until_stopped(lambda at: click.echo(_listening(at)))


def _listening(at: Any) -> str:
    scheme = "https" if at.tls else "http"
    over_grpc = "" if at.grpc is None else f"OTLP/gRPC on {_shown(at.grpc)}, "
    return f"OTLP/HTTP on {scheme}://{_shown(at.http)}, {over_grpc}page on {scheme}://{_shown(at.web)}/"


def _place(command: str, data: Path | None, clickhouse: str | None) -> Any:
    """A folder or a server's address, whichever is given."""
    if (data is None) == (clickhouse is None):
        raise ConfigurationError(f"{command}: needs either --data DIR or --clickhouse URL, and not both")
    return data if clickhouse is None else _provider("remote").parse_address(clickhouse)


@main.group()
def provider() -> None:
    """The provider's own books, and a ClickHouse of its own, fed by the OpenTelemetry Collector."""


_CLUSTER = click.option(
    "--cluster", metavar="NAME", help="Replicated tables on this cluster, read by Distributed ones."
)


@provider.command()
@_CLUSTER
@click.option("--ttl", metavar="AGES", help="How long spans, five-minute and hourly sums are kept: 14d,90d,3y.")
def ddl(cluster: str | None, ttl: str | None) -> None:
    """Print the schema, for the Collector's exporter with create_schema: false. It may be run again."""
    schema = _provider("schema")
    click.echo(schema.ddl(cluster, None if ttl is None else schema.parse_retention(ttl)), nl=False)


@provider.command()
@click.argument("first", type=click.DateTime(["%Y-%m-%d"]))
@click.argument("last", type=click.DateTime(["%Y-%m-%d"]))
@_CLUSTER
def refill(first: datetime, last: datetime, cluster: str | None) -> None:
    """Print what sums the days FIRST to LAST again from their spans: those from before the schema was made."""
    click.echo(_provider("schema").refill(first.date(), last.date(), cluster), nl=False)


@main.command()
@click.option("--data", type=click.Path(file_okay=False, path_type=Path), help="A store that no daemon has open.")
@click.option("--clickhouse", metavar="URL", help=_CLICKHOUSE)
@click.option("--url", help="A running `mfu serve`, its --web address.")
@click.option("--token-file", type=click.Path(dir_okay=False, path_type=Path), help="Holds the token for --url.")
@click.option(
    "--since", default="7d", show_default=True, help="A span before --until (90s, 15m, 24h, 7d), or ISO 8601."
)
@click.option("--until", help="The end, exclusive, ISO 8601; now unless given.")
@click.option("--tenant", help="Only this tenant.")
@click.option("--prices", type=click.Path(path_type=Path), multiple=True, help="Not with --url: prices and costs.")
@click.option("--inventory", type=click.Path(path_type=Path), multiple=True, help="Not with --url: nodes, allocations.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json", "html", "csv"]),
    default="text",
    show_default=True,
    help="csv is the money, in the columns of FOCUS.",
)
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="A file; standard output unless given."
)
def report(
    data: Path | None, clickhouse: str | None, url: str | None, token_file: Path | None, since: str, until: str | None,
    tenant: str | None,
    prices: tuple[Path, ...], inventory: tuple[Path, ...], form: str, output: Path | None,
) -> None:  # fmt: skip
    """Print the fleet report: levels, expected against observed, what was not counted, and money where there are books.

    --prices and --inventory take a file or a directory, and may be repeated; a provider at --url has its own.
    """
    reports = _provider("report")

    if sum(given is not None for given in (data, clickhouse, url)) != 1:
        raise ConfigurationError("mfu report: needs either --data DIR or --url URL (or --clickhouse URL), and not both")
    if url is not None and (prices or inventory):
        raise ConfigurationError(
            "--prices, --inventory: go with --data or --clickhouse; the provider at --url has books of its own"
        )
    if form == "csv" and tenant is not None:
        raise ConfigurationError("--format csv: is the money of the whole fleet; leave --tenant out")
    when: dict[str, Any] = {"since": since, "until": until}
    source: Any = url if url is not None else _place("mfu report", data, clickhouse)
    access: dict[str, Any] = {}
    if url is None:
        when["now_unix_ns"] = time.time_ns()
        access["books"] = _provider("books").Books(prices, inventory).current()
    else:
        access["token"] = _read_token(token_file)
    if form == "csv":
        read = reports.focus_from_data_dir if url is None else reports.focus_from_url
        text = read(source, **access, **when)
    else:
        read = reports.from_data_dir if url is None else reports.from_url
        text = _rendered(reports, read(source, **access, tenant=tenant, **when), form, output)
    if output is None:
        click.echo(text.rstrip("\n"))
    else:
        write_file(output, text)


@main.command()
@click.option("--device", help="cpu or cuda:N; the current GPU where there is one, else the processor.")
@click.option("--budget", "budget_s", type=float, default=10.0, show_default=True, help="Seconds to spend.")
@click.option("--dtype", "dtypes", multiple=True, help="A dtype to measure; may be repeated.")
@click.option("--sustained", is_flag=True, help="Heat the device for a minute first, then measure for longer.")
@click.option("--collectives", is_flag=True, help="Also the collectives between the ranks that torchrun started.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def calibrate(
    device: str | None, budget_s: float, dtypes: tuple[str, ...], sustained: bool, collectives: bool, as_json: bool
) -> None:
    """Measure the peak of this device, keep it, and print it.

    The default budget is longer than the 3 seconds that a run takes for itself, so that Triton's kernels are compiled
    too, and found compiled by the runs that follow. --sustained takes a minute and a half more, less for each further
    dtype, and its rates are preferred for a week. With --collectives every rank measures its device and all of them
    what is between them; rank 0 prints.
    """
    from mfu_sdk.peak.calibrate import calibrate as measure
    from mfu_sdk.peak.describe import as_json as peaks_json
    from mfu_sdk.peak.describe import describe
    from mfu_sdk.peak.launched import process_group
    from mfu_sdk.progress import bar

    with ExitStack() as stack:
        rank = stack.enter_context(process_group()) if collectives else 0
        progress = stack.enter_context(bar("calibrating")) if rank == 0 else None
        found = measure(device, list(dtypes) or None, budget_s, sustained, collectives=collectives, progress=progress)
    if rank == 0:
        click.echo(json.dumps(peaks_json(found), indent=2) if as_json else describe(found))


@provider.command("import")
@click.argument("scheduler", type=click.Choice(["slurm", "k8s"]))
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True, path_type=Path), default="-")
@click.option("--contract", "contracts", multiple=True, help="[TENANT=]on_demand|reserved|per_token; may be repeated.")
@click.option("--tenant", "tenants", multiple=True, help="THEIRS=OURS: a tenant whom the scheduler calls otherwise.")
@click.option("--zone", help="With slurm: the cluster's time zone, such as Europe/Berlin; UTC unless given.")
@click.option("--tenant-label", help="With k8s: the pods' label that names the tenant; the namespace unless given.")
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="A file; standard output unless given."
)
def import_allocations(
    scheduler: str, file: Path, contracts: tuple[str, ...], tenants: tuple[str, ...], zone: str | None,
    tenant_label: str | None, output: Path | None,
) -> None:  # fmt: skip
    """Turn what a scheduler prints into allocations for --inventory: `sacct --parsable2` or `kubectl get pods -o json`.

    Reads FILE or standard input. The contract is on_demand unless told. Allocations that have to be written by hand
    are named on standard error, and then the exit code is 1.
    """
    imported = _provider("books.imported")
    if zone is not None and scheduler != "slurm":
        raise ConfigurationError("--zone: goes with slurm, whose times have none; leave it out")
    if tenant_label is not None and scheduler != "k8s":
        raise ConfigurationError("--tenant-label: goes with k8s; leave it out")
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file}: cannot be read ({error}); name a readable file in UTF-8") from error
    if scheduler == "slurm":
        found = _provider("books.slurm").from_sacct(text, _zone(zone))
    else:
        found = _provider("books.kubernetes").from_pods(text, tenant_label)
    table = imported.to_yaml(found, contracts, tenants)
    if output is None:
        click.echo(table.rstrip("\n"))
    else:
        write_file(output, table)
    for line in found.left_out:
        click.echo(f"mfu: {line}", err=True)
    if found.left_out:
        raise SystemExit(1)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(as_json: bool) -> None:
    """Say on one screen what an MFU measured here would rest on, and what would be wrong with it."""
    from mfu_sdk.doctor import examine, render

    findings = examine()
    if as_json:
        click.echo(json.dumps([{"what": f.what, "state": f.state, "text": f.text} for f in findings], indent=2))
    else:
        # In a pipe a finding is a line, for grep.
        click.echo(render(findings, shutil.get_terminal_size().columns if sys.stdout.isatty() else None))
    if any(f.state == "bad" for f in findings):
        raise SystemExit(1)


@main.command()
@click.option(
    "--hf-config", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True,
    help="A config.json of a Hugging Face model: text, images or sound.",
)  # fmt: skip
@click.option("--batch", type=click.IntRange(min=1), required=True, help="Sequences, images or recordings.")
@click.option("--seq", type=click.IntRange(min=1), help="Tokens in each, of a decoder too, or samples of a waveform.")
@click.option("--forward-only", is_flag=True, help="No backward pass.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def count(hf_config: Path, batch: int, seq: int | None, forward_only: bool, as_json: bool) -> None:
    """Count the FLOPs of one step of a model without weights, memory or a device (on meta tensors)."""
    from mfu_sdk.counting.huggingface import count_config, describe

    found = count_config(hf_config, batch, seq, backward=not forward_only)
    click.echo(json.dumps(found.as_json(), indent=2) if as_json else describe(found))


@main.command()
@click.option(
    "--hf-config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A config.json of a Hugging Face model.",
)
@click.option("--params", type=float, help="In place of it: parameters of a dense decoder (8.0e9),")
@click.option("--layers", type=click.IntRange(min=1), help="its layers,")
@click.option("--hidden", type=click.IntRange(min=1), help="and its width.")
@click.option("--device", help="H100 SXM, A100, MI300X, …: priors; cpu or cuda:N: the calibrated device that is here.")
@click.option("--batch", type=click.IntRange(min=1), required=True, help="Sequences of one replica in a step.")
@click.option("--seq", type=click.IntRange(min=1), required=True, help="Tokens in each; to decode, in its cache.")
@click.option("--dtype", default="bfloat16", show_default=True, help="Also float16, float32, float8_e4m3fn, …")
@click.option("--phase", type=click.Choice(["train", "prefill", "decode"]), default="train", show_default=True)
@click.option("--gpus", type=int, help="What --tp, --pp and --cp leave over of these is data parallel.")
@click.option("--dp", type=int, help="Replicas, in place of --gpus.")
@click.option("--tp", type=int, default=1, show_default=True, help="GPUs that share each layer.")
@click.option("--pp", type=int, default=1, show_default=True, help="Stages of a pipeline.")
@click.option("--cp", type=int, default=1, show_default=True, help="GPUs that share each sequence.")
@click.option("--ep", type=int, default=1, show_default=True, help="Data-parallel GPUs that share out the experts.")
@click.option("--microbatches", type=int, help="Parts of a replica's step; in a pipeline one sequence each.")
@click.option("--interleave", type=int, default=1, show_default=True, help="Pipeline stages on each GPU.")
@click.option("--recompute", is_flag=True, help="The forward runs again in the backward.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def expect(
    hf_config: Path | None, params: float | None, layers: int | None, hidden: int | None, device: str | None,
    batch: int, seq: int, dtype: str, phase: str, gpus: int | None, dp: int | None, tp: int, pp: int, cp: int,
    ep: int, microbatches: int | None, interleave: int, recompute: bool, as_json: bool,
) -> None:  # fmt: skip
    """Say what MFU a model may be expected to reach, without running it: time, what binds it, and what that assumes.

    A roofline of the operators, what the layout exchanges and how long a pipeline stands idle. It is an upper bound:
    nothing but the device holds the work up.
    """
    from mfu_sdk.intent.forecast import expect as forecast
    from mfu_sdk.intent.words import as_json as plain
    from mfu_sdk.intent.words import describe

    shape = {"params": params, "layers": layers, "hidden": hidden}
    given = {key: value for key, value in shape.items() if value is not None}
    if (hf_config is None) == (not given):
        raise ConfigurationError("mfu expect: needs either --hf-config FILE or --params, --layers and --hidden")
    found = forecast(
        hf_config or given, device=device, batch=batch, seq=seq, dtype=dtype, gpus=gpus, phase=phase, dp=dp, tp=tp,
        pp=pp, cp=cp, microbatches=microbatches, interleave=interleave, recompute=recompute,
        ep=ep,
    )  # fmt: skip
    what = hf_config or f"{params or 0:.3g} parameters"
    title = f"{what}, {phase}, batch {batch:,} × {seq:,} tokens, {dtype}, {found.devices} × {found.device}"
    click.echo(json.dumps(plain(found), indent=2) if as_json else describe(found, title))


@main.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--forward", "forward_only", is_flag=True, help="The first forward alone: for inference.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.argument("target", metavar="SCRIPT_OR_MODULE")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[ARGS]...")
def verify(target: str, arguments: tuple[str, ...], forward_only: bool, as_json: bool) -> None:
    """Our count of a program's first step beside torch's and fvcore's, and why they differ.

    SCRIPT_OR_MODULE is a script, run as it is with ARGS until its first optimizer step; or package.module:callable or
    file.py:callable, called without arguments, which returns (model, args[, kwargs]) or a function that does the work.
    Exits with 1 if a difference has no explanation or an operator has no price.
    """
    from mfu_sdk.counting.verify import describe
    from mfu_sdk.counting.verify import verify as compare

    found = compare(target, arguments, forward_only=forward_only)
    if as_json:
        click.echo(json.dumps(found.as_json(), indent=2))
    else:
        terminal = sys.stdout.isatty()
        width = shutil.get_terminal_size().columns if terminal else 100
        click.echo(describe(found, width, color=terminal))
    if not found.good:
        raise SystemExit(1)


@main.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("-m", "--module", "as_module", is_flag=True, help="SCRIPT is a module's name, as for python -m.")
@click.option("--name", help="The workload's name; the model's class unless given.")
@click.option("--spans", type=click.Choice(["auto", "all", "windows", "off"]), help="In place of MFU_SPANS.")
@click.option(
    "--convention", type=click.Choice(["exact", "full"]), default="exact", show_default=True,
    help="Attention pairs that the mask lets through, or all.",
)  # fmt: skip
@click.option("-q", "--quiet", is_flag=True, help="Print no summary.")
@click.argument("script", metavar="SCRIPT")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[ARGS]...")
def run(
    script: str, arguments: tuple[str, ...], as_module: bool, name: str | None, spans: Any, convention: Any, quiet: bool
) -> None:
    """Run a training script, unchanged, under a monitor.

    The first optimizer that steps tells the model and the steps, which are measured from the second one on. SCRIPT
    runs as `python SCRIPT ARGS` would, and ends with its exit code; the summary goes to standard error. Of several
    ranks (`torchrun --no-python mfu run SCRIPT`) each measures itself and rank 0 prints. A script with a monitor of
    its own is left alone.
    """
    from mfu_sdk.integrations.launch import launch

    launch(
        script, arguments, as_module=as_module, name=name, spans=spans, convention=convention,
        say=None if quiet else lambda text: click.echo(text, err=True),
    )  # fmt: skip


@main.command()
@click.option("--gpus", type=int, default=200, show_default=True, help="How many GPUs the fleet has.")
@click.option("--hours", type=float, default=24.0, show_default=True, help="How long it is followed.")
@click.option(
    "--faults",
    type=click.Path(dir_okay=False, path_type=Path),
    help="What is wrong in it; a built-in mix unless given.",
)
@click.option(
    "--otlp", help="Where the telemetry is sent, the --http address of `mfu serve`; else only files are written."
)
@click.option(
    "-o", "--out", type=click.Path(file_okay=False, path_type=Path), default=Path("fleet"), show_default=True,
    help="Directory of inventory.yaml, prices.yaml, tokens.yaml and truth.json.",
)  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed gives the same fleet.")
@click.option("--until", help="When it ends, in ISO 8601; now unless given.")
def simulate(
    gpus: int, hours: float, faults: Path | None, otlp: str | None, out: Path, seed: int, until: str | None
) -> None:
    """A synthetic fleet with known faults, sent over real OTLP, and the truth about it.

    Without --otlp it writes the provider's files alone and prints how to go on. Time is virtual: spans are dated back
    from --until. Each tenant sends under its token of tokens.yaml.
    """
    from mfu_sdk.progress import bar

    _provider("store")
    fleet = _provider("simulate.fleet")
    made = fleet.Fleet(gpus, hours, faults, seed, fleet.moment(until, time.time_ns()))
    made.write_books(out, write_file)
    if otlp is None:
        again = f"--gpus {gpus} --hours {hours:g} --seed {seed} --until {made.until_iso} --out {out}"
        again += f" --faults {faults}" if faults is not None else ""
        click.echo(f"{made.describe()}\nFiles: {out}. Go on with:")
        known = {option.name for option in serve.params}
        books = [f"--{name} {out / name}.yaml" for name in ("tokens", "inventory", "prices") if name in known]
        click.echo(f"  mfu serve --data STORE {' '.join(books)}")
        click.echo(f"  mfu simulate {again} --otlp http://127.0.0.1:4318")
        return
    with bar("mfu simulate") as progress:
        truth = made.send(otlp, progress)
    write_file(out / "truth.json", json.dumps(truth, indent=1) + "\n")
    fleet_truth = truth["fleet"]
    found = "none" if fleet_truth["mfu"] is None else f"{100 * fleet_truth['mfu']:.2f} %"
    click.echo(
        f"{made.describe()}\nSent {fleet_truth['spans']:,} spans, fleet MFU {found}. Truth: {out / 'truth.json'}"
    )


@main.command()
@click.argument(
    "files", metavar="FILE...", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@click.option("--otlp", help="The collector's base URL; else the provider's, else the tenant's.")
def replay(files: tuple[Path, ...], otlp: str | None) -> None:
    """Deliver the steps that killed processes left in their flight recorders, once, under their original ids.

    A file whose steps have been delivered is removed; one that a living process has open is left alone. Protocol,
    headers, TLS and compression are those that the environment sets for the collector. Exits with 1 if the collector
    does not take the steps, which then stay where they are, or refuses some of them for good.
    """
    from mfu_sdk.export.destination import for_replay
    from mfu_sdk.export.replay import replay as deliver
    from mfu_sdk.settings import Settings

    destination = for_replay(otlp, Settings.from_env().provider)
    done = []
    for path in files:
        done.append(deliver(path, destination))
        click.echo(str(done[-1]))
    if all(each.live for each in done):
        raise ConfigurationError(f"{files[0]}: a process has it open; wait until that has ended")
    if any(each.refused for each in done):
        raise SystemExit(1)


def _provider(module: str) -> Any:
    """A module of the provider half. Raises `MissingDependencyError`, naming the extra, where its packages are not."""
    try:
        return importlib.import_module(f"mfu_sdk.provider.{module}")
    except ModuleNotFoundError as missing:
        if (missing.name or "").startswith("mfu_sdk"):
            raise
        raise MissingDependencyError(
            f"{missing.name} is not installed: the provider half needs it; install mfu-sdk[provider]"
        ) from missing


def write_file(path: Path, text: str) -> None:
    """Write a report whole or not at all. Raises `ConfigurationError` where it cannot be written."""
    try:
        atomic.write_text(path, text)
    except OSError as error:
        raise ConfigurationError(
            f"{path}: cannot be written ({error.strerror}); name a file in a directory of yours"
        ) from error


def _address(option: str, text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ConfigurationError(f"{option} {text!r}: must be HOST:PORT with a port of 0 to 65535, like 127.0.0.1:4318")
    return host.strip("[]"), int(port)


def _shown(address: tuple[str, int]) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _rendered(reports: Any, found: Any, form: str, output: Path | None) -> str:
    if form != "text":
        return str(reports.to_json(found) if form == "json" else _provider("pages").render_html(found))
    # A terminal's own width and colours; 100 plain columns in a pipe or a file.
    terminal = output is None and sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if terminal else 100
    return str(reports.render_text(found, width, color=terminal))


def _zone(name: str | None) -> ZoneInfo:
    try:
        return ZoneInfo(name or "UTC")
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ConfigurationError(f"--zone={name!r}: must be a zone such as Europe/Berlin") from None


def _read_token(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigurationError(
            f"--token-file {path}: cannot be read ({error.strerror}); give a file with the token"
        ) from error


if __name__ == "__main__":
    main()
