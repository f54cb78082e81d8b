// Refreshes the parts of the page that changed, where the reader is; without it the page is as it was when it was asked for.
"use strict";
(() => {
  const every = Number(document.body.dataset.everyS) * 1000;
  if (!every) return;

  const status = document.createElement("span");
  status.setAttribute("role", "status");
  const button = document.createElement("button");
  button.type = "button";
  button.className = "plain";
  let paused = false;
  const told = () => { button.textContent = paused ? "Resume updates" : "Pause updates"; };
  button.addEventListener("click", () => { paused = !paused; told(); if (!paused) refresh(); });
  told();
  const box = document.createElement("p");
  box.className = "live quiet";
  box.append(button, " ", status);
  document.querySelector(".filters").append(box);

  const focusable = "a[href], button, input, select, summary, [tabindex]";
  const replace = (old, found) => {
    // Where the reader is inside: the same link or box by its number, and how far each box was scrolled.
    const place = [...old.querySelectorAll(focusable)].indexOf(document.activeElement);
    const scrolled = [...old.querySelectorAll(".scroll")].map((one) => one.scrollLeft);
    old.replaceWith(found);
    [...found.querySelectorAll(".scroll")].forEach((one, n) => { one.scrollLeft = scrolled[n] ?? 0; });
    if (place >= 0) found.querySelectorAll(focusable)[place]?.focus({ preventScroll: true });
  };

  const refresh = async () => {
    if (paused || document.hidden) return;
    try {
      const answer = await fetch(location.href, { headers: { Accept: "text/html" }, cache: "no-store" });
      if (!answer.ok) throw new Error(String(answer.status));
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const ids = (root) => [...root.querySelectorAll("main [data-live]")].map((one) => one.id).join();
      if (ids(page) !== ids(document)) {
        replace(document.querySelector("main"), page.querySelector("main"));
      }
      for (const found of page.querySelectorAll("[data-live]")) {
        const old = document.getElementById(found.id);
        if (old && old.outerHTML !== found.outerHTML) replace(old, found);
      }
      document.title = page.title;
      status.textContent = "";
    } catch (error) {
      status.textContent = `Not updated: the provider does not answer (${error.message}).`;
    }
  };
  setInterval(refresh, every);
  document.addEventListener("visibilitychange", refresh);
})();
