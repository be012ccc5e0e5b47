"use strict";

/* The model in a worker: opened when it is first wanted, one chip at a time. */
const model = (() => {
  let worker, opened, jobs = 0;
  const waiting = new Map();

  function run(job, given, transfer = []) {
    const id = ++jobs;
    worker.postMessage({ id, job, ...given }, transfer);
    return new Promise((resolve, reject) => waiting.set(id, { resolve, reject }));
  }

  async function open() {
    const [runtime, packedModel] = await Promise.all([explorer.load("runtime"), explorer.load("model")]);
    const parts = [runtime.script, runtime.worker, runtime.loader, runtime.binary, packedModel];
    const [script, work, loader, binary, content] = await Promise.all(parts.map(explorer.unzipped));
    const source = new Blob([script, "\n", work], { type: "text/javascript" });
    worker = new Worker(URL.createObjectURL(source));
    worker.onmessage = ({ data: { id, result, error } }) => {
      const { resolve, reject } = waiting.get(id);
      waiting.delete(id);
      if (error) reject(new Error(error));
      else resolve(result);
    };
    await run("open", { loader, binary, model: content }, [loader, binary, content]);
  }

  /** Rebuild this chip from now on. */
  async function take({ image, valid, numBands, side }) {
    opened ??= open();
    await opened;
    return run("take", { image, valid, numBands, side });
  }

  /** `reconstruction` (band, row, col) and, of runs that have them, `classes` (patch, class). */
  function rebuild(hidden) {
    const patches = [...hidden.keys()];
    return run("rebuild", {
      visible: patches.filter((patch) => !hidden[patch]),
      masked: patches.filter((patch) => hidden[patch]),
    });
  }

  return { take, rebuild };
})();
