"use strict";

/* A chip in physical units, what is hidden of it, and what a copy of the nearest patch makes of it.
   Images are Float32Array (band, row, col); patches are numbered row by row. */
class Chip {
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
    chip.layOut();
    return chip;
  }

  /** Which pixels of a plane a patch has, and the mean of every band over its valid ones. */
  layOut() {
    const { side, patch, grid, plane, numBands, numPatches } = this;
    this.patchOf = new Uint16Array(plane);
    this.pixels = Array.from({ length: numPatches }, () => []);
    for (let pixel = 0; pixel < plane; pixel++) {
      const [row, col] = [Math.floor(pixel / side), pixel % side];
      this.patchOf[pixel] = Math.floor(row / patch) * grid + Math.floor(col / patch);
      this.pixels[this.patchOf[pixel]].push(pixel);
    }
    this.known = this.pixels.map((own) => own.filter((pixel) => this.valid[pixel]));
    this.means = this.known.map((known) => Array.from({ length: numBands }, (_, band) =>
      known.reduce((sum, pixel) => sum + this.image[band * plane + pixel], 0) / known.length));
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
      const flat = isHidden ? colours.HIDDEN : !valid[pixel] && image === this.image ? colours.MISSING : null;
      for (let channel = 0; channel < 3; channel++) {
        picture.data[4 * pixel + channel] =
          flat ? flat[channel] : (image[bands[channel] * plane + pixel] - low) * scale;
      }
      picture.data[4 * pixel + 3] = 255;
    }
    canvas.getContext("2d").putImageData(picture, 0, 0);
  }
}
