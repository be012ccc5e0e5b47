"use strict";

/* The view of an area: its layers, and what a click on the map does. */
const areaView = (() => {
  const state = { area: null, view: null, layers: [], base: null, over: null, cursor: -1, tool: "choose" };
  let page, view;

  async function start(given) {
    page = given;
    page.ramp = await explorer.unpacked(page.ramp);
    view = state.view = new MapView(byId("map"), draw, click);
    const places = byId("place");
    page.areas.forEach((each, i) => places.append(element("option", { value: i }, each.name)));
    byId("place-field").hidden = page.areas.length < 2;
    places.addEventListener("change", async () => { await open(); link.write(); });
    byId("over").addEventListener("change", () => { blend(); link.write(); });
    byId("share").addEventListener("input", blend);
    byId("splits").addEventListener("change", () => { view.redraw(); link.write(); });
    for (const input of byId("tools").querySelectorAll("input")) input.addEventListener("change", () => take(input.value));
    byId("zoom-in").addEventListener("click", () => view.zoom(1.5));
    byId("zoom-out").addEventListener("click", () => view.zoom(1 / 1.5));
    byId("zoom-fit").addEventListener("click", () => view.fit());
    byId("map").addEventListener("keydown", key);
    likeness.start(page);
    labels.start(page);
    await open();
  }

  /** Show the region that is chosen. */
  async function open() {
    const about = page.areas[byId("place").value];
    const loading = byId("loading");
    loading.hidden = false;
    const area = await Patches.open(page, about);
    const [base, over] = [state.base?.id, state.over?.id];
    Object.assign(state, { area, cursor: -1, layers: layers.of(page, area) });
    likeness.open(area);
    labels.open(area);
    listLayers(base, over);
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
        onchange() { state.base = layer; showLegend(); view.redraw(); link.write(); },
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
    likeness.draw((...given) => frame(context, ...given));
    labels.draw(context, view);
    if (state.cursor >= 0 && state.cursor !== likeness.state.chosen) frame(context, state.cursor, "#ffffff", 2);
    drawScale();
    link.soon();
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

  /** A box around a patch, never so small that it cannot be seen; crossed out where it is unlike. */
  function frame(context, patch, colour, line, crossed = false) {
    const px = 1 / view.scale;
    const [x, y] = state.area.centre(patch);
    const side = Math.max(state.area.patchPx, 10 * px);
    context.lineJoin = "round";
    for (const [width, style] of [[line + 2.5, "rgb(0 0 0 / 0.8)"], [line, colour]]) {
      context.lineWidth = width * px;
      context.strokeStyle = style;
      context.strokeRect(x - side / 2, y - side / 2, side, side);
      if (!crossed) continue;
      context.beginPath();
      context.moveTo(x - side / 2, y + side / 2);
      context.lineTo(x + side / 2, y - side / 2);
      context.stroke();
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
    if (!area || event.ctrlKey || event.metaKey || (event.altKey && event.key !== "Enter")) return;
    if (way && event.shiftKey) view.pan(-60 * way[0], -60 * way[1]);
    else if (way) moveCursor(way);
    else if (event.key === "+" || event.key === "=") view.zoom(1.5);
    else if (event.key === "-") view.zoom(1 / 1.5);
    else if (event.key === "0") view.fit();
    else if ((event.key === "Enter" || event.key === " ") && state.cursor >= 0) {
      if (kindOf(event) === "label") labels.paint(...area.centre(state.cursor));
      else likeness.take(state.cursor, kindOf(event), event.timeStamp);
    } else if (state.tool === "label" && /^[1-9]$/.test(event.key)) labels.pick(Number(event.key));
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
    byId("map-said").textContent = likeness.inWords(next);
  }

  // What a click does

  /** The tool, or what is held with a click or Enter in its place. */
  function kindOf(event) {
    if (state.tool === "label") return "label";
    if (event.altKey) return "unlike";
    return event.shiftKey ? "alike" : state.tool;
  }

  function click(x, y, event) {
    if (!state.area) return;
    const kind = kindOf(event);
    if (kind === "label") return labels.paint(x, y);
    const patch = state.area.at(x, y);
    if (patch < 0) return;
    state.cursor = patch;
    likeness.take(patch, kind, event.timeStamp);
  }

  function take(tool) {
    state.tool = tool;
    byId("tools").querySelector(`[value="${tool}"]`).checked = true;
    view.brush = tool === "label" ? labels.paint : null;
    byId("likeness").hidden = tool === "label";
    byId("labelling").hidden = tool !== "label";
    link.write(false);
  }

  function reveal(patch) {
    state.cursor = patch;
    view.reveal(...state.area.centre(patch), state.area.patchPx, 28);
    view.redraw();
  }

  // The link

  function told() {
    const { base, over, area, tool } = state;
    const at = view.whole ? "" : [view.x.toFixed(1), view.y.toFixed(1), view.scale.toFixed(3)].join();
    return {
      region: page.areas.length > 1 ? byId("place").value : "", layer: base?.id ?? "", over: over?.id ?? "",
      share: over ? byId("share").value : "", splits: area?.outlines.length && !byId("splits").checked ? 0 : "",
      tool: tool === "choose" ? "" : tool, at, ...likeness.told(),
    };
  }

  async function restore(given) {
    const region = page.areas[given.get("region")] ? given.get("region") : "0";
    if (region !== byId("place").value) {
      byId("place").value = region;
      await open();
    }
    byId("share").value = given.get("share") ?? 60;
    byId("splits").checked = given.get("splits") !== "0";
    listLayers(given.get("layer"), given.get("over"));
    take(["choose", "alike", "unlike", "label"].includes(given.get("tool")) ? given.get("tool") : "choose");
    const [x, y, scale] = (given.get("at") ?? "").split(",").map(Number);
    if (scale > 0 && scale <= 24) {
      view.scale = scale;
      view.centre(x || 0, y || 0);
    } else view.fit();
    likeness.restore(given);
  }

  return { start, take, kindOf, reveal, told, restore, state, redraw: () => view?.redraw() };
})();

