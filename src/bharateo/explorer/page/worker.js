"use strict";

/* Runs the model, away from the page that is painted on. ONNX Runtime stands before this text. */
let session = null;
let chip = null;

async function open({ loader, binary, model }) {
  ort.env.logLevel = "error";
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmBinary = binary;
  ort.env.wasm.wasmPaths = { mjs: URL.createObjectURL(new Blob([loader], { type: "text/javascript" })) };
  session = await ort.InferenceSession.create(model, { executionProviders: ["wasm"] });
}

function take({ image, valid, numBands, side }) {
  chip = {
    image: new ort.Tensor("float32", image, [1, numBands, side, side]),
    valid: new ort.Tensor("bool", valid, [1, side, side]),
  };
}

async function rebuild({ visible, masked }) {
  const indices = (some) => new ort.Tensor("int64", BigInt64Array.from(some, BigInt), [1, some.length]);
  const made = await session.run({ ...chip, visible: indices(visible), masked: indices(masked) });
  return Object.fromEntries(Object.entries(made).map(([name, tensor]) => [name, tensor.data]));
}

const jobs = { open, take, rebuild };
self.onmessage = async ({ data }) => {
  try {
    self.postMessage({ id: data.id, result: await jobs[data.job](data) });
  } catch (error) {
    self.postMessage({ id: data.id, error: String(error?.message ?? error) });
  }
};
