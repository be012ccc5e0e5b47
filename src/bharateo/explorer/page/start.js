"use strict";

/* Views, colours of the page, and the first load. */
(async () => {
  const page = await explorer.load("explorer");

  function showView() {
    const name = link.read().view;
    for (const each of link.views) byId(each).hidden = each !== name;
    for (const tab of document.querySelectorAll("nav a")) {
      if (tab.hash === `#${name}`) tab.setAttribute("aria-current", "page");
      else tab.removeAttribute("aria-current");
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

  byId("theme").addEventListener("click", () => {
    const names = Object.keys(themes);
    const next = names[(names.indexOf(document.documentElement.dataset.theme) + 1) % names.length];
    explorer.kept("theme", next);
    showTheme(next);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => areaView.redraw());
  window.addEventListener("popstate", () => {
    showView();
    if (areaView.state.area) link.follow();
  });
  const theme = explorer.kept("theme");
  showTheme(theme in themes ? theme : "auto");
  showView();
  requestAnimationFrame(() => setTimeout(async () => {
    try {
      await areaView.start(page);
      await link.follow();
    } catch (error) {
      byId("loading").textContent = `The area cannot be shown: ${error.message}`;
    }
  }));
})();
