"use strict";

/* The points of a survey, answered one by one. Nothing here knows what the map says of them. */
const points = (() => {
  const survey = JSON.parse(byId("survey").textContent);
  const KEYS = "123456789abcdefghijklm";
  const UNSURE = "unsure";
  const labels = [...survey.classes, UNSURE];
  const kept = `points-${survey.sample}`;
  const state = { place: 0, answers: Array(survey.points.length).fill(null) };

  const keyOf = (label) => (label === UNSURE ? "0" : KEYS[survey.classes.indexOf(label)] ?? "");

  function start() {
    byId("answers").append(...labels.map((label) => element("li", {}, element("button", {
      type: "button", "data-label": label, onclick: () => answer(label),
    }, element("span", {}, label === UNSURE ? "Not sure" : label), element("kbd", {}, keyOf(label))))));
    byId("back").addEventListener("click", () => show(state.place - 1));
    byId("next").addEventListener("click", () => show(state.place + 1));
    byId("open").addEventListener("click", () => show(nextOpen()));
    byId("save").textContent = `Save ${survey.file}`;
    byId("save").addEventListener("click", save);
    byId("load").addEventListener("click", () => byId("file").click());
    byId("file").addEventListener("change", async (event) => {
      const [file] = event.target.files;
      event.target.value = "";
      if (file) byId("said").textContent = load(await file.text(), file.name);
    });
    byId("beside").textContent = `Move ${survey.file} beside ${survey.plan}, then:`;
    byId("command").textContent = `bharateo areas ${quoted(survey.map)} ${quoted(survey.file)} --output areas.csv`;
    document.addEventListener("keydown", key);
    const text = explorer.kept(kept);
    if (text) load(text, "what this browser keeps");
    show(nextOpen());
  }

  function key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const label = labels.find((each) => keyOf(each) === event.key.toLowerCase());
    if (label) answer(label);
    else if (event.key === "ArrowRight") show(state.place + 1);
    else if (event.key === "ArrowLeft") show(state.place - 1);
    else if (event.key === "Delete" || event.key === "Backspace") answer(null);
    else return;
    event.preventDefault();
  }

  /** Answer the point that is shown and go on; null takes the answer back, and stays. */
  function answer(label) {
    state.answers[state.place] = label;
    explorer.kept(kept, JSON.stringify({ features: features() }));
    show(label === null ? state.place : nextOpen());
  }

  /** The next point without an answer, from the one shown on; that one where there is none. */
  function nextOpen() {
    const { place, answers } = state;
    for (let step = 0; step < answers.length; step++) {
      const next = (place + step) % answers.length;
      if (answers[next] === null) return next;
    }
    return place;
  }

  function show(place) {
    const { answers } = state;
    state.place = Math.max(0, Math.min(answers.length - 1, place));
    const [lon, lat, picture] = survey.points[state.place];
    byId("picture").src = picture;
    byId("picture").alt = `Point ${state.place + 1}, near and around`;
    byId("asked").textContent = `Point ${state.place + 1}`;
    byId("where").textContent = `${lat.toFixed(6)}, ${lon.toFixed(6)}`;
    for (const button of byId("answers").querySelectorAll("button")) {
      button.setAttribute("aria-pressed", String(button.dataset.label === answers[state.place]));
    }
    const done = answers.filter((each) => each !== null).length;
    byId("progress").value = done;
    byId("done").textContent = `${done} of ${answers.length} answered` + (done === answers.length ? ": save them" : "");
    byId("back").disabled = state.place === 0;
    byId("next").disabled = state.place === answers.length - 1;
    byId("open").disabled = done === answers.length;
    const following = survey.points[state.place + 1];
    if (following) new Image().src = following[2];
  }

  // Files

  const features = () => survey.points.map(([lon, lat], place) =>
    feature("Point", [lon, lat], { id: place + 1, label: state.answers[place] }));

  function save() {
    explorer.save(survey.file, features(), { sample: survey.sample });
    byId("said").textContent = `${survey.file} is where your browser puts what it downloads.`;
  }

  /** Take the answers of a file over; in words what came of it. */
  function load(text, name) {
    let given;
    try {
      const record = JSON.parse(text);
      if ((record.sample ?? survey.sample) !== survey.sample) return `${name} is of another sample.`;
      given = record.features.map(({ properties: { id, label } }) => [id - 1, label])
        .filter(([place, label]) => place in state.answers && labels.includes(label));
    } catch {
      return `${name} holds no answers.`;
    }
    for (const [place, label] of given) state.answers[place] = label;
    explorer.kept(kept, JSON.stringify({ features: features() }));
    show(nextOpen());
    return `${given.length} answers of ${name} are here.`;
  }

  return { start, load, state };
})();

points.start();
