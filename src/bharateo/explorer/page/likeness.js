"use strict";

/* Examples of what is looked for and of what is not, and the patches that are found by them. */
const likeness = (() => {
  const CONTEXT = 3; // side of a thumbnail, in patches
  const COLOURS = { alike: "#ff6a3d", unlike: "#5ec8ff", hit: "#ffd84d" };
  const state = { alike: [], unlike: [], hits: [], chosen: -1 };
  let page, area;

  function start(given) {
    page = given;
    byId("count").addEventListener("change", () => search());
    byId("save-hits").addEventListener("click", save);
    byId("clear-examples").addEventListener("click", () => search({ alike: [], unlike: [], chosen: -1 }));
  }

  function open(given) {
    area = given;
    Object.assign(state, { alike: [], unlike: [], hits: [], chosen: -1 });
    describe();
  }

  /** Take a patch as the only example, or as one more that is alike or unlike; such a one again
      takes it back. */
  function take(patch, kind, since) {
    const { alike, unlike } = state;
    if (kind === "choose") return search({ alike: [patch], unlike: [], chosen: patch }, since);
    const without = (patches) => patches.filter((each) => each !== patch);
    const more = { alike: without(alike), unlike: without(unlike), chosen: patch };
    if (!state[kind].includes(patch)) more[kind].push(patch);
    search(more, since);
  }

  function search(given = {}, since = performance.now()) {
    Object.assign(state, given);
    state.hits = area.ranked(state.alike, state.unlike, Number(byId("count").value));
    describe();
    areaView.redraw();
    byId("map-said").textContent = state.hits.length
      ? `${state.alike.length} alike, ${state.unlike.length} not; ${state.hits.length} patches found` : "";
    link.write();
    explorer.shown("nearest", since);
  }

  function save() {
    const features = state.hits.map(([patch, score], place) => {
      const [lon, lat] = area.lonLat(...area.centre(patch));
      const properties = { rank: place + 1, score: Number(score.toFixed(6)), lon, lat };
      if (area.labels) properties.label = className(area.label[patch]);
      if (area.probabilities) properties.predicted = className(area.predicted(patch));
      if (area.distance) properties.out_of_domain = area.distance[patch] > 1;
      properties.attribution = page.attribution.join("; ");
      return feature("Polygon", [area.outline(patch)], properties);
    });
    explorer.save("hits.geojson", features);
  }

  // What is shown

  function draw(frame) {
    for (const [patch] of state.hits) frame(patch, COLOURS.hit, 2);
    for (const patch of state.alike) frame(patch, COLOURS.alike, 3);
    for (const patch of state.unlike) frame(patch, COLOURS.unlike, 3, true);
    if (state.chosen >= 0 && ![...state.alike, ...state.unlike].includes(state.chosen)) frame(state.chosen, "#ffffff", 3);
  }

  const className = (id) => page.classes[id]?.name ?? "no label";

  function inWords(patch) {
    const says = area.probabilities ? `, predicted ${className(area.predicted(patch))}` : "";
    const outside = area.distance?.[patch] > 1 ? ", out of the run’s domain" : "";
    return `Patch at row ${area.row[patch]}, column ${area.col[patch]}: label ${className(area.label[patch])}${says}${outside}`;
  }

  function describe() {
    const { alike, unlike, hits, chosen } = state;
    const any = alike.length + unlike.length > 0;
    byId("likeness").classList.toggle("filled", any || chosen >= 0);
    byId("no-examples").hidden = any || chosen >= 0;
    byId("examples").hidden = !any;
    byId("hits").hidden = !hits.length;
    for (const [kind, patches] of Object.entries({ alike, unlike })) {
      byId(kind).parentElement.hidden = !patches.length;
      refill(byId(kind), ...patches.map((patch, place) => element("li", {}, element("button", {
        type: "button",
        title: `${inWords(patch)}. Press to take it back`,
        "aria-label": `Take back ${kind} example ${place + 1}: label ${className(area.label[patch])}`,
        onclick: (event) => take(patch, kind, event.timeStamp),
      }, thumbnail(patch, COLOURS[kind], kind === "unlike"), element("span", { "aria-hidden": "true" }, "×")))));
    }
    byId("hits-title").textContent = `The ${hits.length} most alike`;
    refill(byId("nearest"), ...hits.map(hit));
    byId("patch").hidden = chosen < 0;
    if (chosen >= 0) byId("patch").replaceChildren(...aboutPatch(chosen));
  }

  /** A patch that was found; it leads there, or becomes an example like a click on the map. */
  function hit([patch, score], place) {
    const label = className(area.label[patch]);
    return element("li", {}, element("button", {
      type: "button",
      title: inWords(patch),
      "aria-label": `${place + 1}: ${label}, score ${score.toFixed(2)}; go there`,
      "aria-current": String(patch === state.chosen),
      onclick(event) {
        const kind = areaView.kindOf(event);
        if (kind === "alike" || kind === "unlike") return take(patch, kind, event.timeStamp);
        state.chosen = patch;
        areaView.reveal(patch);
        describe();
        link.write();
      },
    }, thumbnail(patch, COLOURS.hit), element("span", {}, score.toFixed(2))));
  }

  /** What is known of a patch. */
  function aboutPatch(patch) {
    const facts = element("dl", { className: "facts" });
    const fact = (name, what) => facts.append(element("div", {}, element("dt", {}, name), element("dd", {}, what)));
    if (area.labels) {
      const purity = area.label[patch] === 255 ? "" : `, ${perCent(area.purity[patch])} of the labelled pixels`;
      fact("Label", className(area.label[patch]) + purity);
    }
    if (area.suspect?.[patch] === 1) fact("Suspect", "the model hardly believes this label");
    if (area.distance?.[patch] > 1) fact("Out of domain", "unlike what the run was trained on: what it says here is a guess");
    if (area.probabilities) fact("Uncertainty", perCent(area.entropy(patch)));
    if (area.error) {
      const [error, copy] = [area.error[patch], area.copy_error[patch]];
      fact("Rebuilt when hidden", `off by ${error.toPrecision(2)}, ${error < copy ? "better" : "no better"} than ` +
        `the nearest visible patch (${copy.toPrecision(2)})`);
    }
    const split = area.splitNames[area.split[patch]];
    if (split) fact("Split", split === "train" ? "train" : `${split}, held out of training`);
    const [lon, lat] = area.lonLat(...area.centre(patch));
    const east = ((((lon + 180) % 360) + 360) % 360) - 180;
    fact("Place", `${Math.abs(lat).toFixed(4)}° ${lat < 0 ? "S" : "N"}, ` +
      `${Math.abs(east).toFixed(4)}° ${east < 0 ? "W" : "E"}`);
    return [
      element("h2", {}, "Chosen patch"),
      element("div", { className: "chosen" }, thumbnail(patch, "#ffffff"), facts),
      ...(area.probabilities ? [element("h3", {}, "Class probabilities"), bars(patch)] : []),
    ];
  }

  function bars(patch) {
    const ranked = area.chances(patch).map((share, id) => [share, id]).sort((a, b) => b[0] - a[0]);
    return element("ul", { className: "bars" }, ...ranked.map(([share, id]) => {
      const bar = element("span", { className: "fill" });
      bar.style.width = perCent(share, 1).replace(" ", "");
      bar.style.background = css(page.classes[id].colour);
      return element("li", {}, element("span", { className: "name" }, className(id)),
        element("span", { className: "track" }, bar), element("span", { className: "value" }, perCent(share)));
    }));
  }

  /** The first picture around a patch. */
  function thumbnail(patch, colour, crossed = false) {
    const canvas = element("canvas", { className: "thumbnail", width: 96, height: 96, "aria-hidden": "true" });
    const context = canvas.getContext("2d");
    const side = CONTEXT * area.patchPx;
    const [x, y] = area.centre(patch);
    context.drawImage(area.pictures[0], x - side / 2, y - side / 2, side, side, 0, 0, 96, 96);
    context.lineWidth = 2;
    context.strokeStyle = colour;
    context.strokeRect(32, 32, 32, 32);
    if (crossed) context.stroke(new Path2D("M32 64 64 32"));
    return canvas;
  }

  // The link

  function told() {
    const { alike, unlike, chosen } = state;
    return { alike: alike.join(), unlike: unlike.join(), chosen: chosen < 0 ? "" : chosen, count: byId("count").value };
  }

  function restore(given) {
    const patches = (name) => [...new Set((given.get(name) || "").split(",").filter(Boolean).map(Number))]
      .filter((patch) => Number.isInteger(patch) && patch >= 0 && patch < area.count);
    const alike = patches("alike");
    const counts = [...byId("count").options].map((each) => each.value);
    byId("count").value = counts.includes(given.get("count")) ? given.get("count") : counts[0];
    search({ alike, unlike: patches("unlike").filter((each) => !alike.includes(each)), chosen: patches("chosen")[0] ?? -1 });
  }

  return { start, open, take, draw, inWords, told, restore, state };
})();
