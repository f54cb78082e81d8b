// Refreshes the parts of the page that changed, where the reader is, and sends what an operator decides about a finding.
// Without it the page is as it was when it was asked for, and decisions go to the API.
"use strict";
(() => {
  const focusable = "a[href], button, input, select, summary, [tabindex]";

  const replace = (old, found) => {
    // Where the reader is inside: the same link or box by its number, and how far each box was scrolled.
    const place = [...old.querySelectorAll(focusable)].indexOf(document.activeElement);
    const scrolled = [...old.querySelectorAll(".scroll")].map((one) => one.scrollLeft);
    old.replaceWith(found);
    [...found.querySelectorAll(".scroll")].forEach((one, n) => { one.scrollLeft = scrolled[n] ?? 0; });
    if (place >= 0) found.querySelectorAll(focusable)[place]?.focus({ preventScroll: true });
    show(found);
  };

  const show = (root) => { for (const form of root.querySelectorAll("form[data-finding]")) form.hidden = false; };

  const refresh = async () => {
    const answer = await fetch(location.href, { headers: { Accept: "text/html" }, cache: "no-store" });
    if (!answer.ok) throw new Error(String(answer.status));
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const ids = (root) => [...root.querySelectorAll("main [data-live]")].map((one) => one.id).join();
    if (ids(page) !== ids(document)) replace(document.querySelector("main"), page.querySelector("main"));
    for (const found of page.querySelectorAll("[data-live]")) {
      const old = document.getElementById(found.id);
      // What somebody is writing is not taken away; the next refresh comes.
      const written = [...old?.querySelectorAll("input[name=note]") ?? []].some((one) => one.value);
      show(found);
      if (old && !written && old.outerHTML !== found.outerHTML) replace(old, found);
    }
    document.title = page.title;
  };

  document.addEventListener("submit", async (event) => {
    const id = event.target.dataset.finding;
    if (!id) return;
    event.preventDefault();
    const note = event.target.elements.note;
    const status = event.target.querySelector("[role=status]");
    try {
      const answer = await fetch(`/api/findings/${encodeURIComponent(id)}/state`, {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ state: event.submitter.value, note: note.value }),
      });
      if (!answer.ok) throw new Error((await answer.text()).trim());
      note.value = "";
      await refresh();
    } catch (error) {
      status.textContent = `Not done: ${error.message}`;
    }
  });

  show(document);
  const every = Number(document.body.dataset.everyS) * 1000;
  if (!every) return;

  const status = document.createElement("span");
  status.setAttribute("role", "status");
  const button = document.createElement("button");
  button.type = "button";
  button.className = "plain";
  let paused = false;
  const tell = () => { button.textContent = paused ? "Resume updates" : "Pause updates"; };
  const look = async () => {
    if (paused || document.hidden) return;
    try {
      await refresh();
      status.textContent = "";
    } catch (error) {
      status.textContent = `Not updated: the provider does not answer (${error.message}).`;
    }
  };
  button.addEventListener("click", () => { paused = !paused; tell(); look(); });
  tell();
  const box = document.createElement("p");
  box.className = "live quiet";
  box.append(button, " ", status);
  document.querySelector(".filters").append(box);
  setInterval(look, every);
  document.addEventListener("visibilitychange", look);
})();
