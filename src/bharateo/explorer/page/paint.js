"use strict";

/* The view in which a mask is painted on a chip. */
const paintView = (() => {
  const state = { chip: null, hidden: null, made: null, seed: 1, ready: false, busy: false, since: 0 };
  let page, composite, started = false, brush = null;

  async function start(given) {
    if (started) return;
    started = true;
    page = given;
    composite = page.composites[0];
    if (page.no_painting) {
      byId("no-painting").textContent = `There is nothing to paint on: ${page.no_painting}.`;
      byId("no-painting").hidden = false;
      byId("painting").hidden = true;
      return;
    }
    byId("ratio").value = Math.round(100 * page.run.mask_ratio);
    byId("ratio").addEventListener("input", (event) => hide(random(), event.timeStamp));
    byId("redraw").addEventListener("click", (event) => { state.seed++; hide(random(), event.timeStamp); });
    byId("invert").addEventListener("click", (event) => change((hidden) => 1 - hidden, event.timeStamp));
    byId("clear").addEventListener("click", (event) => change(() => 0, event.timeStamp));
    for (const [i, about] of page.chips.entries()) {
      const canvas = element("canvas", {});
      byId("chips").append(element("button", {
        type: "button", "aria-label": `Chip ${i + 1}: ${about.name}`, "aria-pressed": "false", onclick: () => open(i),
      }, canvas));
      const bitmap = await explorer.picture(about.picture);
      [canvas.width, canvas.height] = [bitmap.width, bitmap.height];
      canvas.getContext("2d").drawImage(bitmap, 0, 0);
    }
    await open(0);
  }

  async function open(place) {
    [...byId("chips").children].forEach((each, i) => each.setAttribute("aria-pressed", String(i === place)));
    say("Loading the model");
    const chip = await Chip.open(page, page.chips[place]);
    const first = !state.chip;
    Object.assign(state, { chip, made: null, ready: false });
    const split = chip.about.split;
    byId("chip-note").textContent = `Chip ${place + 1}: ${chip.about.name}.` +
      (split ? ` From the ${split} split${split === "train" ? "; the model was trained on it" : ", held out of training"}.` : "");
    if (first) layCells();
    chip.draw(byId("pane-original"), chip.image, composite);
    if (first) state.hidden = random();
    showMask();
    try {
      await model.take(chip);
    } catch (error) {
      return say(`The model cannot run in this browser: ${error.message}`);
    }
    if (state.chip !== chip) return;
    state.ready = true;
    changed(performance.now());
  }

  // The mask

  /** A mask with the share of the slider; with the same seed a larger share hides the same patches
      and more. Numbers are those of mulberry32, a public-domain generator by T. Ettinger. */
  function random() {
    const { numPatches } = state.chip;
    let seed = state.seed;
    const noise = Array.from({ length: numPatches }, () => {
      seed = (seed + 0x6d2b79f5) | 0;
      let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
      t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
      return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
    });
    const order = [...noise.keys()].sort((a, b) => noise[a] - noise[b]);
    const most = Math.min(Math.floor((numPatches * byId("ratio").value) / 100), numPatches - 1);
    const hidden = new Uint8Array(numPatches);
    order.slice(0, most).forEach((patch) => { hidden[patch] = 1; });
    return hidden;
  }

  /** Hide these patches (1) and no others (0). */
  function hide(hidden, since) {
    state.hidden = hidden;
    showMask();
    changed(since);
  }

  /** Hide or show every patch as `next(now, patch)` says. */
  function change(next, since = performance.now()) {
    hide(state.hidden.map(next), since);
  }

  function set(patch, value, since) {
    if (state.hidden[patch] !== value) change((now, each) => (each === patch ? value : now), since);
  }

  function layCells() {
    const { grid } = state.chip;
    const cells = byId("cells");
    cells.style.setProperty("--grid", grid);
    for (let row = 0; row < grid; row++) {
      cells.append(element("div", { role: "row" }, ...Array.from({ length: grid }, (_, col) =>
        element("div", { role: "gridcell", tabIndex: row + col ? -1 : 0, "data-patch": row * grid + col }))));
    }
    cells.addEventListener("keydown", cellKey);
    cells.addEventListener("pointerdown", strokeStarts);
    cells.addEventListener("pointermove", (event) => {
      if (brush !== null) set(patchUnder(event), brush, event.timeStamp);
    });
    for (const kind of ["pointerup", "pointercancel"]) cells.addEventListener(kind, () => { brush = null; });
  }

  function cellKey(event) {
    const { grid } = state.chip;
    const patch = Number(event.target.dataset.patch);
    const [row, col] = [Math.floor(patch / grid), patch % grid];
    const steps = {
      ArrowLeft: [row, col - 1], ArrowRight: [row, col + 1], ArrowUp: [row - 1, col], ArrowDown: [row + 1, col],
      Home: [row, 0], End: [row, grid - 1],
    };
    if (event.key === " " || event.key === "Enter") set(patch, 1 - state.hidden[patch], event.timeStamp);
    else if (steps[event.key]) focusOn(...steps[event.key].map((each) => Math.max(0, Math.min(grid - 1, each))));
    else return;
    event.preventDefault();
  }

  function focusOn(row, col) {
    const next = byId("cells").querySelector(`[data-patch="${row * state.chip.grid + col}"]`);
    byId("cells").querySelector('[tabindex="0"]').tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }

  function patchUnder(event) {
    const box = byId("cells").getBoundingClientRect();
    const { grid } = state.chip;
    const along = (at, start, side) => Math.max(0, Math.min(grid - 1, Math.floor((grid * (at - start)) / side)));
    return along(event.clientY, box.top, box.height) * grid + along(event.clientX, box.left, box.width);
  }

  function strokeStarts(event) {
    if (event.button) return;
    event.preventDefault();
    byId("cells").setPointerCapture(event.pointerId);
    const patch = patchUnder(event);
    brush = 1 - state.hidden[patch];
    focusOn(Math.floor(patch / state.chip.grid), patch % state.chip.grid);
    set(patch, brush, event.timeStamp);
  }

  function showMask() {
    const { chip, hidden } = state;
    chip.draw(byId("pane-seen"), chip.image, composite, hidden);
    byId("cells").querySelectorAll("[data-patch]").forEach((cell, patch) => {
      const [row, col] = [Math.floor(patch / chip.grid) + 1, (patch % chip.grid) + 1];
      cell.setAttribute("aria-selected", String(Boolean(hidden[patch])));
      cell.setAttribute("aria-label", `Row ${row}, column ${col}, ${hidden[patch] ? "hidden" : "visible"}`);
    });
    byId("ratio-text").textContent = perCent(hidden.reduce((a, b) => a + b) / chip.numPatches);
  }

  // The rebuild

  /** Rebuild what is hidden now; while the model is busy, only the last change waits. */
  async function changed(since) {
    state.since = since;
    if (state.busy || !state.ready) return;
    state.busy = true;
    try {
      let done;
      do {
        done = state.since;
        await rebuild(done);
      } while (state.ready && state.since !== done);
    } catch (error) {
      say(`The model failed: ${error.message}`);
    } finally {
      state.busy = false;
    }
  }

  async function rebuild(since) {
    const { chip } = state;
    const hidden = state.hidden.slice();
    const numHidden = hidden.reduce((a, b) => a + b);
    const possible = numHidden > 0 && numHidden < chip.numPatches;
    const made = possible ? await model.rebuild(hidden) : { reconstruction: chip.image };
    if (state.chip !== chip) return;
    const copy = chip.copied(hidden);
    state.made = { ...made, copy, hidden };
    chip.draw(byId("pane-model"), made.reconstruction, composite, possible ? null : hidden);
    chip.draw(byId("pane-copy"), copy, composite, possible ? null : hidden);
    showFigures(chip, hidden, numHidden, possible);
    explorer.shown("rebuild", since);
  }

  function showFigures(chip, hidden, numHidden, possible) {
    const { reconstruction, copy, classes } = state.made;
    const [error, copyError] = possible ? [reconstruction, copy].map((each) => chip.error(each, hidden)) : [null, null];
    const shown = (value) => (value === null ? "" : value.toPrecision(3));
    byId("error-model").textContent = shown(error);
    byId("error-copy").textContent = shown(copyError);
    state.made.error = error;
    state.made.copyError = copyError;
    if (!numHidden) say("Nothing is hidden. Paint over the second picture, or move the slider.");
    else if (!possible) say("Everything is hidden. Leave at least one patch visible.");
    else if (error !== null) say(verdict(error, copyError));
    const rows = [["Hidden patches", `${numHidden} of ${chip.numPatches}`]];
    if (error !== null) {
      rows.push(["Masked MAE, model", shown(error)], ["Masked MAE, copy", shown(copyError)]);
      rows.push(["Model over copy", (error / copyError).toFixed(2)], ["Unit", page.run.unit]);
    }
    const named = possible && classes ? namedRight(chip, hidden, classes) : null;
    if (named) rows.push(["Class of hidden patches", named]);
    byId("figures").replaceChildren(
      ...rows.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value))));
  }

  function verdict(error, copyError) {
    const share = Math.abs(1 - error / copyError);
    if (share > 1) return `The model is ${(1 + share).toFixed(1)} times as far off as the copy of the nearest visible patch.`;
    if (!(share >= 0.005)) return "The model is as far off as the copy of the nearest visible patch.";
    const better = error < copyError;
    return `The model is ${perCent(share)} ${better ? "closer" : "farther off"} than the copy of the nearest visible patch.`;
  }

  /** How many labelled hidden patches the model names as their label does. */
  function namedRight(chip, hidden, classes) {
    const numClasses = page.classes.length;
    const asked = [...hidden.keys()].filter((patch) => hidden[patch] && chip.labels[patch] !== 255);
    if (!asked.length) return null;
    const right = asked.filter((patch) => {
      const chances = classes.subarray(patch * numClasses, (patch + 1) * numClasses);
      return chances.indexOf(Math.max(...chances)) === chip.labels[patch];
    });
    return `${right.length} of ${asked.length} as labelled`;
  }

  /** Whether what is shown is of the mask as it is. */
  function settled() {
    return Boolean(state.made) && !state.busy && state.made.hidden.every((each, i) => each === state.hidden[i]);
  }

  function say(words) {
    byId("verdict").textContent = words;
  }

  return { start, state, change, settled };
})();
