"use strict";

document.documentElement.classList.add("live");

// Light or dark: as the system says until the reader chooses; the choice is kept where the browser lets a file keep anything.
{
  const root = document.documentElement, button = document.querySelector(".theme");
  const system = matchMedia("(prefers-color-scheme: dark)");

  const kept = {
    read() { try { return localStorage.getItem("theme"); } catch { return null; } },
    write(theme) { try { localStorage.setItem("theme", theme); } catch { /* not kept */ } },
  };

  function show() {
    const dark = (root.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
    button.setAttribute("aria-pressed", String(dark));
    button.textContent = dark ? "Light" : "Dark";
    button.setAttribute("aria-label", dark ? "Show the page in light colours" : "Show the page in dark colours");
  }

  if (["light", "dark"].includes(kept.read())) root.dataset.theme = kept.read();
  button.addEventListener("click", () => {
    root.dataset.theme = button.getAttribute("aria-pressed") === "true" ? "light" : "dark";
    kept.write(root.dataset.theme);
    show();
  });
  system.addEventListener("change", show);
  show();
}

// Contents stand open beside the page, and folded above it on a narrow screen.
{
  const contents = document.querySelector(".contents"), narrow = matchMedia("(max-width: 68rem)");
  const legend = document.querySelector(".legend"), phone = matchMedia("(max-width: 44rem)");
  const fold = () => { contents.open = !narrow.matches; legend.open = !phone.matches; };
  narrow.addEventListener("change", fold);
  fold();
}
