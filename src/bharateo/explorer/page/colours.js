"use strict";

/* Values to colours. Colours are [red, green, blue], 0 to 255. */
const colours = {
  HIDDEN: [134, 136, 138],
  MISSING: [161, 161, 157],
  SUSPECT: [214, 0, 122],
  BELIEVED: [190, 194, 198],
  css: ([r, g, b]) => `rgb(${r} ${g} ${b})`,

  /** The colour of a share from 0 to 1 on the page's ramp (a Uint8Array of 256 colours). */
  onRamp(ramp, share) {
    const place = 3 * Math.max(0, Math.min(255, Math.round(255 * share)));
    return [ramp[place], ramp[place + 1], ramp[place + 2]];
  },

  gradient(ramp) {
    const stops = [...Array(9).keys()].map((i) => colours.css(colours.onRamp(ramp, i / 8)));
    return `linear-gradient(90deg, ${stops.join(", ")})`;
  },
};
