"use strict";

/* Views, colours of the page, and the first load. */
(async () => {
  const page = await explorer.load("explorer");
  const views = ["area", "paint", "about"];

  function showView() {
    const wanted = location.hash.slice(1);
    const name = views.includes(wanted) ? wanted : "area";
    for (const each of views) byId(each).hidden = each !== name;
    for (const link of document.querySelectorAll("nav a")) {
      if (link.hash === `#${name}`) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    window.scrollTo(0, 0);
    if (name === "paint") paintView.start(page);
    if (name === "area") areaView.redraw();
  }

  const themes = { auto: ["Auto", "as the system has them"], light: ["Light", "light"], dark: ["Dark", "dark"] };

  function showTheme(name) {
    document.documentElement.dataset.theme = name;
    byId("theme").querySelector("span").textContent = themes[name][0];
    byId("theme").setAttribute("aria-label", `Colours: ${themes[name][1]}`);
    areaView.redraw();
  }

  /** What was kept; browsers may refuse to keep anything for pages from disk. */
  function kept(value) {
    try {
      if (value) localStorage.setItem("bharateo-theme", value);
      return localStorage.getItem("bharateo-theme");
    } catch {
      return value;
    }
  }

  byId("theme").addEventListener("click", () => {
    const names = Object.keys(themes);
    const next = names[(names.indexOf(document.documentElement.dataset.theme) + 1) % names.length];
    kept(next);
    showTheme(next);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => areaView.redraw());
  window.addEventListener("hashchange", showView);
  const theme = kept();
  showTheme(theme in themes ? theme : "auto");
  showView();
  requestAnimationFrame(() => setTimeout(async () => {
    try {
      await areaView.start(page);
    } catch (error) {
      byId("loading").textContent = `The area cannot be shown: ${error.message}`;
    }
  }));
})();
