"use strict";

/* The view of an area: layers, a chosen patch, and the patches most like it. */
const areaView = (() => {
  const NEAREST = 20;
  const CONTEXT = 3; // side of a thumbnail, in patches
  const state = { area: null, view: null, layers: [], base: null, over: null, cursor: -1, chosen: -1, nearest: [] };
  let page, view;

  async function start(given) {
    page = given;
    page.ramp = await explorer.unpacked(page.ramp);
    view = state.view = new MapView(byId("map"), draw, (x, y, event) => choose(state.area?.at(x, y) ?? -1, event.timeStamp));
    const places = byId("place");
    page.areas.forEach((each, i) => places.append(element("option", { value: i }, each.name)));
    byId("place-field").hidden = page.areas.length < 2;
    places.addEventListener("change", () => open(page.areas[places.value]));
    byId("over").addEventListener("change", blend);
    byId("share").addEventListener("input", blend);
    byId("splits").addEventListener("change", () => view.redraw());
    byId("zoom-in").addEventListener("click", () => view.zoom(1.5));
    byId("zoom-out").addEventListener("click", () => view.zoom(1 / 1.5));
    byId("zoom-fit").addEventListener("click", () => view.fit());
    byId("map").addEventListener("keydown", key);
    await open(page.areas[0]);
  }

  async function open(about) {
    const loading = byId("loading");
    loading.hidden = false;
    const area = await Patches.open(page, about);
    const [base, over] = [state.base?.id, state.over?.id];
    Object.assign(state, { area, cursor: -1, chosen: -1, nearest: [], layers: layers.of(page, area) });
    listLayers(base, over);
    describe();
    loading.hidden = true;
    const [rows, cols] = area.shape;
    view.open(cols, rows);
  }

  // Layers

  function listLayers(base, over) {
    const named = (id) => state.layers.find((each) => each.id === id);
    state.base = named(base) ?? state.layers[0];
    state.over = named(over) ?? null;
    const list = byId("layers");
    list.querySelectorAll("label").forEach((each) => each.remove());
    for (const layer of state.layers) {
      const input = element("input", {
        type: "radio", name: "layer", value: layer.id, checked: layer === state.base,
        onchange() { state.base = layer; showLegend(); view.redraw(); },
      });
      list.append(element("label", { className: "check" }, input, layer.title));
    }
    const none = element("option", { value: "" }, "nothing");
    const others = state.layers.map((each) => element("option", { value: each.id }, each.title));
    byId("over").replaceChildren(none, ...others);
    byId("over").value = state.over?.id ?? "";
    byId("splits-field").hidden = !state.area.outlines.length;
    blend();
  }

  function blend() {
    state.over = state.layers.find((each) => each.id === byId("over").value) ?? null;
    state.share = byId("share").value / 100;
    byId("share-field").hidden = !state.over;
    byId("share-text").textContent = perCent(state.share);
    showLegend();
    view.redraw();
  }

  function showLegend() {
    const shown = [...new Set([state.base, state.over])].filter(Boolean);
    byId("legend").replaceChildren(
      ...shown.map((layer) => element("div", {}, element("h2", {}, layer.title), layer.legend())));
  }

  // The map

  function draw(context) {
    const { area, base, over } = state;
    if (!area) return;
    base.draw(context, view, area.shape);
    if (over && over !== base) {
      context.globalAlpha = state.share;
      over.draw(context, view, area.shape);
      context.globalAlpha = 1;
    }
    if (byId("splits").checked) drawSplits(context);
    state.nearest.forEach(([patch]) => frame(context, patch, "#ffd84d", 2));
    if (state.chosen >= 0) frame(context, state.chosen, "#ff6a3d", 3);
    if (state.cursor >= 0 && state.cursor !== state.chosen) frame(context, state.cursor, "#ffffff", 2);
    drawScale();
  }

  function drawSplits(context) {
    const px = 1 / view.scale;
    const styles = { train: [1, []], val: [2, [7 * px, 4 * px]], test: [2.5, []] };
    for (const [row, col, height, width, split] of state.area.outlines) {
      const [line, dashes] = styles[split];
      const inset = split === "train" ? 0 : 1.5 * px;
      const box = [col + inset, row + inset, width - 2 * inset, height - 2 * inset];
      context.setLineDash([]);
      context.strokeStyle = "rgb(0 0 0 / 0.55)";
      context.lineWidth = (line + 2) * px;
      context.strokeRect(...box);
      context.setLineDash(dashes);
      context.strokeStyle = "#fff";
      context.lineWidth = line * px;
      context.strokeRect(...box);
      if (split === "train" || width <= 48 * px) continue;
      const [x, y] = [box[0] + 5 * px, box[1] + 5 * px];
      context.font = `600 ${12 * px}px system-ui, sans-serif`;
      context.textBaseline = "top";
      context.fillStyle = "rgb(0 0 0 / 0.65)";
      context.fillRect(x, y, context.measureText(split).width + 10 * px, 18 * px);
      context.fillStyle = "#fff";
      context.fillText(split, x + 5 * px, y + 3 * px);
    }
    context.setLineDash([]);
  }

  /** A box around a patch, never so small that it cannot be seen. */
  function frame(context, patch, colour, line) {
    const px = 1 / view.scale;
    const [x, y] = state.area.centre(patch);
    const side = Math.max(state.area.patchPx, 10 * px);
    context.lineJoin = "round";
    for (const [width, style] of [[line + 2.5, "rgb(0 0 0 / 0.8)"], [line, colour]]) {
      context.lineWidth = width * px;
      context.strokeStyle = style;
      context.strokeRect(x - side / 2, y - side / 2, side, side);
    }
  }

  function drawScale() {
    const metres = 110 * (state.area.metresPerPx / view.scale);
    const power = 10 ** Math.floor(Math.log10(metres));
    const round = [5, 2, 1].find((each) => each * power <= metres) * power;
    byId("scale-line").style.width = `${(110 * round) / metres}px`;
    byId("scale-text").textContent = round < 1000 ? `${round} m` : `${round / 1000} km`;
  }

  function key(event) {
    const { area } = state;
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!area || event.ctrlKey || event.metaKey || event.altKey) return;
    if (way && event.shiftKey) view.pan(-60 * way[0], -60 * way[1]);
    else if (way) moveCursor(way);
    else if (event.key === "+" || event.key === "=") view.zoom(1.5);
    else if (event.key === "-") view.zoom(1 / 1.5);
    else if (event.key === "0") view.fit();
    else if ((event.key === "Enter" || event.key === " ") && state.cursor >= 0) choose(state.cursor, event.timeStamp);
    else return;
    event.preventDefault();
  }

  /** Move the cursor to the next patch; the first time, to the one in the middle. */
  function moveCursor([dx, dy]) {
    const { area, cursor } = state;
    const away = (patch) => Math.hypot(area.centre(patch)[0] - view.x, area.centre(patch)[1] - view.y);
    let next = cursor < 0 ? 0 : area.beside(cursor, dx, dy);
    if (cursor < 0) for (let patch = 1; patch < area.count; patch++) if (away(patch) < away(next)) next = patch;
    state.cursor = next;
    view.reveal(...area.centre(next), area.patchPx, 0);
    byId("map-said").textContent = inWords(next);
  }

  // A chosen patch

  function choose(patch, since = performance.now()) {
    if (patch < 0) return;
    state.cursor = state.chosen = patch;
    state.nearest = state.area.nearest(patch, NEAREST);
    describe();
    view.redraw();
    explorer.shown("nearest", since);
  }

  const className = (id) => page.classes[id]?.name ?? "no label";

  function inWords(patch) {
    const { area } = state;
    const says = area.probabilities ? `, predicted ${className(area.predicted(patch))}` : "";
    return `Patch at row ${area.row[patch]}, column ${area.col[patch]}: label ${className(area.label[patch])}${says}`;
  }

  function describe() {
    const { area, chosen } = state;
    byId("patch").classList.toggle("filled", chosen >= 0);
    if (chosen < 0) {
      byId("patch").replaceChildren(element("p", { className: "hint" },
        `Choose a patch on the map: what the model says of it, and the ${NEAREST} patches most like it, appear here.`));
      return;
    }
    const facts = element("dl", { className: "facts" });
    const fact = (name, what) => facts.append(element("div", {}, element("dt", {}, name), element("dd", {}, what)));
    if (area.labels) {
      const purity = area.label[chosen] === 255 ? "" : `, ${perCent(area.purity[chosen])} of the labelled pixels`;
      fact("Label", className(area.label[chosen]) + purity);
    }
    if (area.suspect?.[chosen] === 1) fact("Suspect", "the model hardly believes this label");
    if (area.probabilities) fact("Uncertainty", perCent(area.entropy(chosen)));
    if (area.error) {
      const [error, copy] = [area.error[chosen], area.copy_error[chosen]];
      fact("Rebuilt when hidden", `off by ${error.toPrecision(2)}, ${error < copy ? "better" : "no better"} than ` +
        `the nearest visible patch (${copy.toPrecision(2)})`);
    }
    const split = area.splitNames[area.split[chosen]];
    if (split) fact("Split", split === "train" ? "train" : `${split}, held out of training`);
    const [lon, lat] = area.lonLat(...area.centre(chosen));
    const east = ((((lon + 180) % 360) + 360) % 360) - 180;
    fact("Place", `${Math.abs(lat).toFixed(4)}° ${lat < 0 ? "S" : "N"}, ` +
      `${Math.abs(east).toFixed(4)}° ${east < 0 ? "W" : "E"}`);
    byId("patch").replaceChildren(
      element("h2", {}, "Chosen patch"),
      element("div", { className: "chosen" }, thumbnail(chosen, "#ff6a3d"), facts),
      ...(area.probabilities ? [element("h3", {}, "Class probabilities"), bars(chosen)] : []),
      element("h3", {}, `The ${state.nearest.length} patches most like it`),
      element("ol", { className: "nearest" }, ...state.nearest.map(likePatch)),
    );
  }

  function bars(patch) {
    const ranked = state.area.chances(patch).map((share, id) => [share, id]).sort((a, b) => b[0] - a[0]);
    return element("ul", { className: "bars" }, ...ranked.map(([share, id]) => {
      const bar = element("span", { className: "fill" });
      bar.style.width = perCent(share, 1).replace(" ", "");
      bar.style.background = css(page.classes[id].colour);
      return element("li", {}, element("span", { className: "name" }, className(id)),
        element("span", { className: "track" }, bar), element("span", { className: "value" }, perCent(share)));
    }));
  }

  /** One of the patches most like the chosen one; it leads there. */
  function likePatch([patch, cosine], place) {
    const label = className(state.area.label[patch]);
    return element("li", {}, element("button", {
      type: "button",
      title: inWords(patch),
      "aria-label": `${place + 1}: ${label}, likeness ${cosine.toFixed(2)}; go there`,
      onclick(event) {
        view.reveal(...state.area.centre(patch), state.area.patchPx, 28);
        choose(patch, event.timeStamp);
      },
    }, thumbnail(patch, "#ffd84d"), element("span", {}, cosine.toFixed(2))));
  }

  /** The first picture around a patch. */
  function thumbnail(patch, colour) {
    const { area } = state;
    const canvas = element("canvas", { className: "thumbnail", width: 96, height: 96, "aria-hidden": "true" });
    const context = canvas.getContext("2d");
    const side = CONTEXT * area.patchPx;
    const [x, y] = area.centre(patch);
    context.drawImage(area.pictures[0], x - side / 2, y - side / 2, side, side, 0, 0, 96, 96);
    context.lineWidth = 2;
    context.strokeStyle = colour;
    context.strokeRect(32, 32, 32, 32);
    return canvas;
  }

  return { start, state, redraw: () => view?.redraw() };
})();
