/**
 * Light or dark: as the system has it, until someone chooses. Loaded before the page is painted.
 */

import { read, write } from "./storage.js";

const system = matchMedia("(prefers-color-scheme: dark)");

const isDark = () => (read("theme") ?? (system.matches ? "dark" : "light")) === "dark";

function apply() {
  const chosen = read("theme");
  if (chosen) document.documentElement.dataset.theme = chosen;
  document.getElementById("theme")?.setAttribute("aria-pressed", String(isDark()));
}

function start() {
  apply();
  system.addEventListener("change", apply);
  document.getElementById("theme").addEventListener("click", () => {
    write("theme", isDark() ? "light" : "dark");
    apply();
  });
}

apply();
if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
else start();
