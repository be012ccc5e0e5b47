"use strict";

/* The page's data: scripts that register records, loaded when they are wanted. A page opened from
   disk may load scripts and nothing else, hence base64 and gzip inside them. */
const explorer = (() => {
  const records = new Map();
  const loading = new Map();

  function register(name, record) {
    records.set(name, record);
  }

  /** The record of a data file. */
  function load(name) {
    if (!loading.has(name)) {
      loading.set(name, new Promise((resolve, reject) => {
        if (records.has(name)) return resolve(records.get(name));
        document.head.append(element("script", {
          src: `data/${name}.js`,
          onload: () => resolve(records.get(name)),
          onerror: () => reject(new Error(`data/${name}.js is missing: write the page again`)),
        }));
      }));
    }
    return loading.get(name);
  }

  function bytes(base64) {
    if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64);
    return Uint8Array.from(atob(base64), (each) => each.charCodeAt(0));
  }

  /** The bytes of gzipped base64. */
  function unzipped(base64) {
    const stream = new Blob([bytes(base64)]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).arrayBuffer();
  }

  const ARRAYS = {
    bool: Uint8Array, uint8: Uint8Array, int8: Int8Array, uint16: Uint16Array,
    int16: Int16Array, float32: Float32Array,
  };

  /** The typed array of a packed one. */
  async function unpacked(record) {
    return new ARRAYS[record.dtype](await unzipped(record.gzip));
  }

  /** A picture, ready to be drawn. */
  function picture(record) {
    return createImageBitmap(new Blob([bytes(record.bytes)], { type: record.type }));
  }

  /** Milliseconds from an event to the frame that shows what came of it, by name. */
  const timings = {};
  function shown(name, since) {
    requestAnimationFrame(() => setTimeout(() => { timings[name] = performance.now() - since; }));
  }

  /** What is kept in the browser under a name, after a value was put there; browsers may refuse to
      keep anything for pages from disk. */
  function kept(name, value) {
    try {
      if (value !== undefined) localStorage.setItem(`bharateo-${name}`, value);
      return localStorage.getItem(`bharateo-${name}`);
    } catch {
      return value ?? null;
    }
  }

  /** Hand features over as a GeoJSON file (RFC 7946). */
  function save(name, features, about = {}) {
    const text = JSON.stringify({ type: "FeatureCollection", ...about, features });
    const address = URL.createObjectURL(new Blob([text], { type: "application/geo+json" }));
    element("a", { href: address, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(address), 60000);
  }

  return { register, load, unzipped, unpacked, picture, timings, shown, kept, save };
})();

const feature = (type, coordinates, properties) =>
  ({ type: "Feature", geometry: { type, coordinates }, properties });

/** An element with attributes, or properties where there are such, and children. */
function element(name, given = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(given)) {
    if (key in made) made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

/** Put children in the place of others; what had the focus there keeps it, by its place. */
function refill(parent, ...children) {
  const inside = () => [...parent.querySelectorAll("input, button")];
  const place = inside().indexOf(document.activeElement);
  parent.replaceChildren(...children);
  if (place >= 0) (inside()[Math.min(place, inside().length - 1)] ?? byId("map")).focus();
}

const byId = (id) => document.getElementById(id);
const perCent = (share, digits = 0) => `${(100 * share).toFixed(digits)} %`;

/** A colour, [red, green, blue] from 0 to 255, in CSS. */
const css = ([r, g, b]) => `rgb(${r} ${g} ${b})`;

/** A word as a shell takes it. */
const quoted = (word) => (/^[\w.\/-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`);
