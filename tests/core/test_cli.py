"""The `mfu` command as a person types it, in processes of its own.

What many wrong uses are told is asked within this process, which has loaded everything already.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

import mfu_sdk
from mfu_sdk.cli import main


def mfu(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mfu_sdk.cli", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | env,
        timeout=300,
        check=False,
    )


def mfu_here(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The same command within this process."""
    done = CliRunner().invoke(main, arguments)
    # Anything but an exit would be a traceback.
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """The error, which must be one line without a traceback, with exit code 2."""
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert "Traceback" not in done.stderr
    assert len(lines) == 1, done.stderr
    return lines[0]


def test_version() -> None:
    """`mfu --version` says the package's own version."""
    assert mfu("--version").stdout.strip() == f"mfu, version {mfu_sdk.__version__}"


def test_unknown_option_is_named() -> None:
    """Exit code 2, and the option's name in the message."""
    done = mfu("report", "--colour")
    assert done.returncode == 2
    assert "No such option" in done.stderr
    assert "--colour" in done.stderr


def test_unknown_command_is_named() -> None:
    """Exit code 2, and the command's name in the message."""
    done = mfu("measure")
    assert done.returncode == 2
    assert "No such command 'measure'" in done.stderr


def test_report_needs_one_source(tmp_path: Path) -> None:
    """Neither or both of --data and --url is an error that says so."""
    assert "needs either --data DIR or --url URL" in one_line(mfu_here("report"))
    both = mfu_here("report", "--data", str(tmp_path), "--url", "http://127.0.0.1:1")
    assert "not both" in one_line(both)


def test_port_in_use(tmp_path: Path) -> None:
    """A taken port is named, with the remedy, before anything is stored."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = mfu("serve", "--data", str(tmp_path / "store"), "--http", f"127.0.0.1:{port}", "--web", "127.0.0.1:0")
    line = one_line(done)
    assert str(port) in line
    assert "in use" in line or "taken" in line


@pytest.mark.parametrize("address", ["4318", "127.0.0.1:http", "127.0.0.1:70000", ":4318"])
def test_a_bad_address_is_named(address: str, tmp_path: Path) -> None:
    """The option, the value and the form that is wanted."""
    line = one_line(mfu_here("serve", "--data", str(tmp_path), "--http", address))
    assert f"--http '{address}': must be HOST:PORT" in line


def test_beyond_loopback_needs_tokens(tmp_path: Path) -> None:
    """Listening on every address without a tokens file is refused."""
    line = one_line(mfu_here("serve", "--data", str(tmp_path), "--http", "0.0.0.0:0", "--web", "127.0.0.1:0"))
    assert "0.0.0.0" in line
    assert "--tokens" in line


def test_an_unreadable_store(tmp_path: Path) -> None:
    """A file where the store's folder should be is said in one line; so is a folder that is not there."""
    file = tmp_path / "store"
    file.write_text("not a store")
    done = mfu("report", "--data", str(file))
    assert done.returncode == 2
    assert str(file) in done.stderr
    assert str(tmp_path / "nowhere") in one_line(mfu("report", "--data", str(tmp_path / "nowhere")))


@pytest.fixture
def nobody() -> Iterator[str]:
    """The URL of a port that nobody listens on, nor can as long as it is bound."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}"


def test_nobody_answers(nobody: str) -> None:
    """A provider that is not there is named, with the question to ask."""
    assert "did not answer" in one_line(mfu("report", "--url", nobody))


def test_a_missing_token_file(tmp_path: Path) -> None:
    """The file that cannot be read is named."""
    done = mfu_here("report", "--url", "http://127.0.0.1:1", "--token-file", str(tmp_path / "token"))
    assert "--token-file" in one_line(done)


def test_missing_torch_is_one_clear_error(tmp_path: Path) -> None:
    """Without torch `mfu calibrate` names the extra; the provider's half does not need it."""
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')\n")
    assert "torch is not installed" in one_line(mfu("calibrate", PYTHONPATH=str(tmp_path)))
    done = mfu("report", "--data", str(tmp_path / "nowhere"), PYTHONPATH=str(tmp_path))
    assert "no such data directory" in one_line(done)


def test_a_wrong_variable_is_named() -> None:
    """A misspelt setting stops the command with the variable's name and its choices."""
    assert "MFU_CALIBRATE='never': must be one of auto, off" in one_line(mfu("calibrate", MFU_CALIBRATE="never"))


def test_calibrate_keeps_what_it_measured(tmp_path: Path) -> None:
    """The JSON holds every rate with its interval, and the next process reads the same calibration back."""
    done = mfu("calibrate", "--device", "cpu", "--budget", "0.5", "--json", MFU_CACHE_DIR=str(tmp_path))
    told = json.loads(done.stdout)
    rate = told["achievable"]["float32"]
    assert 0 < rate["low"] <= rate["flops_per_s"] <= rate["high"]
    assert told["memory"]["bytes_per_s"] > 0
    assert [row["bytes"] for row in told["memory_by_size"]] == sorted(row["bytes"] for row in told["memory_by_size"])
    findings = json.loads(mfu("doctor", "--json", MFU_CACHE_DIR=str(tmp_path)).stdout)
    [peak] = [f for f in findings if f["what"] == "peak" and "float32" in f["text"]]
    assert f"{rate['flops_per_s'] / 1e12:.3f} TFLOP/s" in peak["text"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--budget", "0"], "budget_s=0.0: must be above 0"),
        (["--dtype", "int3"], "dtypes='int3': on cpu choose among float32"),
        (["--device", "tpu"], "device='tpu'"),
    ],
)
def test_calibrate_refuses(arguments: list[str], words: str) -> None:
    """What cannot be measured is named with what can."""
    device = [] if "--device" in arguments else ["--device", "cpu"]
    assert words in one_line(mfu_here("calibrate", *device, *arguments))


def test_doctor_finds_a_dead_exporter(nobody: str, tmp_path: Path) -> None:
    """An endpoint that nobody listens on is bad news, with exit code 1."""
    done = mfu("doctor", OTEL_EXPORTER_OTLP_ENDPOINT=nobody, MFU_CACHE_DIR=str(tmp_path))
    assert done.returncode == 1
    assert "does not answer" in done.stdout
    assert "run `mfu calibrate`" in done.stdout


LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
}


def test_count_a_configuration_by_hand(tmp_path: Path) -> None:
    """A two-layer Llama without weights: products of its matrices, causal attention and the head."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps(LLAMA))
    done = mfu("count", "--hf-config", str(config), "--batch", "2", "--seq", "8", "--json", "--forward-only")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)["count"]
    tokens, d, kv, ff, vocab, layers = 2 * 8, 64, 32, 128, 100, 2
    weights = layers * (d * d + 2 * d * kv + d * d + 3 * d * ff) + d * vocab
    pairs = 2 * 8 * 9 // 2
    assert told["model_flops"] == 2 * weights * tokens + layers * 4 * d * pairs
    assert told["attention_flops_exact"] == layers * 4 * d * pairs
    assert told["attention_flops_full"] == layers * 4 * d * 2 * 8 * 8
    assert told["uncounted"] == []


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"hidden_size": 4}', '{"model_type": "no-such-model"}'],
    ids=["empty", "list", "no type", "unknown"],
)
def test_count_refuses_what_is_no_configuration(text: str, tmp_path: Path) -> None:
    """The file is named, and what it should be."""
    config = tmp_path / "config.json"
    config.write_text(text)
    assert str(config) in one_line(mfu_here("count", "--hf-config", str(config), "--batch", "1", "--seq", "8"))


def test_count_asks_for_a_length(tmp_path: Path) -> None:
    """Text without --seq is one line: the file, the model and the option."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps(LLAMA))
    line = one_line(mfu_here("count", "--hf-config", str(config), "--batch", "1"))
    assert str(config) in line
    assert "LlamaForCausalLM takes a sequence; give its length with --seq" in line


INTENT = ("--params", "8.0e9", "--layers", "32", "--hidden", "4096", "--batch", "8", "--seq", "1024")


def test_expect_tells_an_intent() -> None:
    """From three numbers and a GPU's name: decode is bound by memory, in words and as JSON."""
    done = mfu("expect", *INTENT, "--device", "H100 SXM", "--phase", "decode")
    assert done.returncode == 0, done.stderr
    assert "bound        memory" in done.stdout
    assert "MBU          100.0%" in done.stdout
    plain = json.loads(mfu_here("expect", *INTENT, "--device", "H100 SXM", "--phase", "decode", "--json").stdout)
    assert (plain["bound"], plain["devices"]) == ("memory", 1)
    assert plain["low_mfu"] < plain["mfu"] < plain["high_mfu"]


def test_expect_says_what_is_wrong() -> None:
    """No model, two models, a name that may be several GPUs, numbers that do not go together: one line each."""
    assert "needs either --hf-config FILE or --params" in one_line(mfu_here("expect", "--batch", "1", "--seq", "1"))
    assert "may be any of H100 SXM" in one_line(mfu_here("expect", *INTENT, "--device", "H100"))
    assert "must be a multiple of tp × pp × cp = 4" in one_line(
        mfu_here("expect", *INTENT, "--device", "A100", "--gpus", "6", "--tp", "4")
    )
