"use strict";

/* The page's state in its address: `#area?layer=labels&alike=5,7`. What is done makes a step to go
   back to; how the map is moved does not. */
const link = (() => {
  const views = ["area", "paint", "about"];
  let waiting = 0, restoring = true;

  /** The view that the address names, and the rest of it; null of an address that says no more. */
  function read() {
    const [view, rest] = location.hash.slice(1).split("?");
    return { view: views.includes(view) ? view : views[0], given: rest === undefined ? null : new URLSearchParams(rest) };
  }

  function write(step = true) {
    clearTimeout(waiting);
    if (restoring) return;
    const told = Object.entries(areaView.told()).filter(([, value]) => value !== "").map(([name, value]) => `${name}=${value}`);
    const address = `#${read().view}?${told.join("&")}`;
    if (address === location.hash) return;
    if (step) history.pushState(null, "", address);
    else history.replaceState(null, "", address);
  }

  /** Write it soon, once the map rests. */
  function soon() {
    clearTimeout(waiting);
    waiting = setTimeout(write, 300, false);
  }

  /** Show what the address says, without a step of its own. */
  async function follow() {
    const { given } = read();
    restoring = true;
    try {
      if (given) await areaView.restore(given);
    } finally {
      restoring = false;
    }
    write(false);
  }

  return { views, read, write, soon, follow };
})();
