"use strict";

/* A chip in physical units, what is hidden of it, and what a copy of the nearest patch makes of it.
   Images are Float32Array (band, row, col); patches are numbered row by row. */
class Chip {
  static HIDDEN = [134, 136, 138];
  static MISSING = [161, 161, 157];

  static async open(page, about) {
    const record = await explorer.load(about.data);
    const chip = new Chip();
    const [stored, valid, labels] = await Promise.all(
      ["stored", "valid", "labels"].map((name) => explorer.unpacked(record[name])));
    const { chip_px: side, patch_px: patch } = page.run;
    Object.assign(chip, { about, valid, labels, side, patch, grid: side / patch, plane: side ** 2 });
    chip.numBands = stored.length / chip.plane;
    chip.numPatches = chip.grid ** 2;
    chip.image = new Float32Array(stored.length);
    for (let i = 0; i < stored.length; i++) {
      const band = Math.floor(i / chip.plane);
      chip.image[i] = stored[i] * record.scale[band] + record.offset[band];
    }
    chip.trainMean = page.run.mean;
    // Which pixels of a plane a patch has, and the mean of every band over its valid ones.
    chip.patchOf = new Uint16Array(chip.plane);
    chip.pixels = Array.from({ length: chip.numPatches }, () => []);
    for (let pixel = 0; pixel < chip.plane; pixel++) {
      const [row, col] = [Math.floor(pixel / side), pixel % side];
      chip.patchOf[pixel] = Math.floor(row / patch) * chip.grid + Math.floor(col / patch);
      chip.pixels[chip.patchOf[pixel]].push(pixel);
    }
    chip.known = chip.pixels.map((own) => own.filter((pixel) => valid[pixel]));
    chip.means = chip.known.map((known) => Array.from({ length: chip.numBands }, (_, band) =>
      known.reduce((sum, pixel) => sum + chip.image[band * chip.plane + pixel], 0) / known.length));
    return chip;
  }

  /** The chip with every hidden patch a copy of the nearest visible one that has a valid pixel.

     Distances are between centres, ties go to the lowest number, pixels missing from the copied
     patch take its mean; with nothing to copy, the mean of the training ground. */
  copied(hidden) {
    const { image, plane, valid, numBands } = this;
    const out = image.slice();
    const usable = [...hidden.keys()].filter((patch) => !hidden[patch] && this.known[patch].length);
    for (let patch = 0; patch < this.numPatches; patch++) {
      if (!hidden[patch]) continue;
      const source = this.nearest(patch, usable);
      const mean = source < 0 ? this.trainMean : this.means[source];
      const [to, from] = [this.pixels[patch], this.pixels[source]];
      for (let i = 0; i < to.length; i++) {
        const known = from && valid[from[i]];
        for (let band = 0; band < numBands; band++) {
          out[band * plane + to[i]] = known ? image[band * plane + from[i]] : mean[band];
        }
      }
    }
    return out;
  }

  nearest(patch, usable) {
    const [row, col] = [Math.floor(patch / this.grid), patch % this.grid];
    let [best, least] = [-1, Infinity];
    for (const other of usable) {
      const away = (Math.floor(other / this.grid) - row) ** 2 + ((other % this.grid) - col) ** 2;
      if (away < least) [best, least] = [other, away];
    }
    return best;
  }

  /** Mean absolute error of an image over the valid pixels of the hidden patches; null of none. */
  error(made, hidden) {
    const { image, plane, numBands } = this;
    let [sum, count] = [0, 0];
    for (let patch = 0; patch < this.numPatches; patch++) {
      if (!hidden[patch]) continue;
      for (const pixel of this.known[patch]) {
        for (let i = pixel; i < made.length; i += plane) sum += Math.abs(made[i] - image[i]);
      }
      count += this.known[patch].length * numBands;
    }
    return count ? sum / count : null;
  }

  /** Draw an image under a composite's stretch; hidden patches are grey, where they are given. */
  draw(canvas, image, { bands, low, high }, hidden = null) {
    const { side, plane, patchOf, valid } = this;
    if (canvas.width !== side) canvas.width = canvas.height = side;
    const picture = new ImageData(side, side);
    const scale = 255 / (high - low);
    for (let pixel = 0; pixel < plane; pixel++) {
      const isHidden = hidden?.[patchOf[pixel]];
      const flat = isHidden ? Chip.HIDDEN : !valid[pixel] && image === this.image ? Chip.MISSING : null;
      for (let channel = 0; channel < 3; channel++) {
        picture.data[4 * pixel + channel] =
          flat ? flat[channel] : (image[bands[channel] * plane + pixel] - low) * scale;
      }
      picture.data[4 * pixel + 3] = 255;
    }
    canvas.getContext("2d").putImageData(picture, 0, 0);
  }
}
