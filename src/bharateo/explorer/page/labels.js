"use strict";

/* Points of a person's own classes, clicked and painted, for `bharateo teach --points`. */
const labels = (() => {
  const FILE = "labels.geojson";
  const APART = 10; // pixels on the screen between the points of a stroke
  const PALETTE = ["#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#42d4f4", "#f032e6", "#bfef45", "#9a6324"];
  const ERASER = "";
  const state = { colours: {}, points: [], brush: null, before: [] };
  let page, area, last;

  function start(given) {
    page = given;
    byId("new-class").addEventListener("submit", (event) => {
      event.preventDefault();
      addClass(byId("class-name").value);
      byId("class-name").value = "";
    });
    byId("undo").addEventListener("click", () => { if (state.before.length) changed(state.before.pop()); });
    byId("save-labels").addEventListener("click", save);
    byId("load-labels").addEventListener("click", () => byId("labels-file").click());
    byId("labels-file").addEventListener("change", async (event) => {
      const [file] = event.target.files;
      event.target.value = "";
      if (file) say(load(await file.text(), file.name));
    });
    byId("copy-command").addEventListener("click", copyCommand);
    const text = explorer.kept(`labels-${page.id}`);
    if (text) load(text, "what this browser keeps");
    state.before = [];
    describe();
  }

  function open(given) {
    area = given;
    state.points = state.points.map(placed);
    describe();
  }

  // Classes

  function addClass(name, colour) {
    name = name.trim();
    if (!name) return;
    if (!(name in state.colours)) {
      state.colours[name] = colour ?? PALETTE[Object.keys(state.colours).length % PALETTE.length];
    }
    state.brush = name;
    describe();
    keep();
  }

  /** The class whose number this is, from 1. */
  function pick(number) {
    const name = Object.keys(state.colours)[number - 1];
    if (name !== undefined) choose(name);
  }

  function choose(name) {
    state.brush = name;
    describe();
  }

  function removeClass(name) {
    delete state.colours[name];
    if (state.brush === name) state.brush = null;
    remember();
    changed(state.points.filter((point) => point.name !== name));
  }

  // Points

  const remember = () => { state.before = [...state.before.slice(-49), state.points]; };

  /** A point with its pixel in the area shown, if it lies there. */
  function placed(point) {
    const [x, y] = area.place(point.lon, point.lat);
    const inside = x >= 0 && y >= 0 && x < area.shape[1] && y < area.shape[0];
    return { ...point, at: inside ? [Math.floor(x), Math.floor(y)] : null };
  }

  /** A click, or a stroke as it begins and goes on. */
  function paint(x, y, begins = true) {
    if (state.brush === null) return say("Name a class first.");
    if (begins) {
      remember();
      last = [x, y];
      return changed(touched(state.points, x, y));
    }
    const apart = Math.max(1, APART / areaView.state.view.scale);
    let points = state.points;
    for (;;) {
      const far = Math.hypot(x - last[0], y - last[1]);
      if (far < apart) break;
      last = [last[0] + ((x - last[0]) * apart) / far, last[1] + ((y - last[1]) * apart) / far];
      points = touched(points, ...last);
    }
    changed(points);
  }

  /** The points after the brush was there: a pixel has one class. */
  function touched(points, x, y) {
    const [col, row] = [Math.floor(x), Math.floor(y)];
    if (col < 0 || row < 0 || col >= area.shape[1] || row >= area.shape[0]) return points;
    if (state.brush === ERASER) {
      const near = APART / areaView.state.view.scale;
      return points.filter(({ at }) => !at || Math.hypot(at[0] + 0.5 - x, at[1] + 0.5 - y) > near);
    }
    const [lon, lat] = area.lonLat(col + 0.5, row + 0.5);
    const others = points.filter(({ at }) => !at || at[0] !== col || at[1] !== row);
    return [...others, { name: state.brush, lon, lat, at: [col, row] }];
  }

  function changed(points) {
    state.points = points;
    describe();
    keep();
    areaView.redraw();
  }

  function draw(context, view) {
    const px = 1 / view.scale;
    for (const { name, at } of state.points) {
      if (!at) continue;
      context.beginPath();
      context.arc(at[0] + 0.5, at[1] + 0.5, 5 * px, 0, 2 * Math.PI);
      context.fillStyle = state.colours[name];
      context.fill();
      for (const [line, colour] of [[3, "#000"], [1.5, "#fff"]]) {
        context.lineWidth = line * px;
        context.strokeStyle = colour;
        context.stroke();
      }
      context.fill();
    }
  }

  // Files

  const features = () => state.points.map(({ name, lon, lat }) =>
    feature("Point", [Number(lon.toFixed(8)), Number(lat.toFixed(8))], { class: name, colour: state.colours[name] }));

  const keep = () => explorer.kept(`labels-${page.id}`, JSON.stringify({ type: "FeatureCollection", features: features() }));

  function save() {
    explorer.save(FILE, features());
    say(`${state.points.length} points are in ${FILE}, where your browser puts what it downloads.`);
  }

  /** Add the points of a GeoJSON file; in words what came of it. */
  function load(text, name) {
    let given;
    try {
      const record = JSON.parse(text);
      const crs = record.crs?.properties?.name ?? "CRS84";
      if (!/CRS84$|EPSG:+4326$/.test(crs)) return `${name} is in ${crs}: save it in EPSG:4326.`;
      given = record.features.map(({ geometry, properties }) => {
        const [lon, lat] = geometry?.type === "Point" ? geometry.coordinates : [];
        return { name: String(properties?.class ?? properties?.label ?? "").trim(), colour: properties?.colour, lon, lat };
      });
    } catch {
      return `${name} is no GeoJSON with features.`;
    }
    const taken = given.filter((each) => each.name && Math.abs(each.lon) <= 180 && Math.abs(each.lat) <= 90);
    for (const { name, colour } of taken) {
      const known = /^#[0-9a-f]{6}$/i.test(colour ?? "") ? colour : undefined;
      if (!(name in state.colours)) addClass(name, known);
    }
    remember();
    const points = taken.map(({ name, lon, lat }) => (area ? placed : (each) => ({ ...each, at: null }))({ name, lon, lat }));
    const seen = new Set();
    changed([...state.points, ...points].reverse().filter(({ lon, lat }) => {
      const place = `${lon.toFixed(7)} ${lat.toFixed(7)}`;
      return !seen.has(place) && seen.add(place);
    }).reverse());
    const rest = given.length - taken.length;
    return `${taken.length} points of ${name} are here${rest ? `; ${rest} without a class or a place are not` : ""}.`;
  }

  // What is shown

  function command() {
    const used = Object.entries(state.colours).filter(([name]) => state.points.some((point) => point.name === name));
    const colours = used.map(([name, colour]) => ` --colour ${quoted(`${name}=${colour}`)}`).join("");
    return `bharateo teach ${page.raster ? quoted(page.raster) : "RASTER.tif"} --points ${FILE}${colours} --output taught`;
  }

  async function copyCommand() {
    try {
      await navigator.clipboard.writeText(command());
      say("The command is copied.");
    } catch {
      getSelection().selectAllChildren(byId("command"));
      say("Your browser copies nothing by itself: the command is marked, copy it.");
    }
  }

  function describe() {
    const names = Object.keys(state.colours);
    const eraser = element("li", {}, element("label", { className: "check" }, radio(ERASER), "Eraser"));
    refill(byId("classes"), ...names.map(row), ...(names.length ? [eraser] : []));
    const none = !state.points.length;
    byId("undo").disabled = !state.before.length;
    byId("save-labels").disabled = none;
    byId("teach").hidden = none;
    byId("command").textContent = command();
  }

  function radio(name) {
    return element("input", { type: "radio", name: "brush", value: name, checked: state.brush === name, onchange: () => choose(name) });
  }

  function row(name, place) {
    const count = state.points.filter((point) => point.name === name).length;
    return element("li", {},
      element("label", { className: "check" }, radio(name), element("span", { className: "name" }, name)),
      element("span", { className: "value" }, `${count}${place < 9 ? ` · key ${place + 1}` : ""}`),
      element("input", {
        type: "color", value: state.colours[name], "aria-label": `Colour of ${name}`,
        onchange(event) { state.colours[name] = event.target.value; changed(state.points); },
      }),
      element("button", { type: "button", className: "small", "aria-label": `Remove ${name} and its points`, onclick: () => removeClass(name) }, "×"),
    );
  }

  function say(words) {
    byId("labels-said").textContent = words;
  }

  return { start, open, paint, pick, draw, load, command, state };
})();
