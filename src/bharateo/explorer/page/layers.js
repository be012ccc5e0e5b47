"use strict";

/* The layers of an area: pictures at full resolution, and one colour a patch. */
const layers = (() => {
  /** A layer that draws a picture; pixels are kept sharp where they are large, or `sharp`. */
  function ofPicture(id, title, bitmap, legend, sharp = false) {
    return {
      id, title, legend,
      draw(context, view, [height, width]) {
        context.imageSmoothingEnabled = !sharp && view.scale < 3;
        context.imageSmoothingQuality = "high";
        context.drawImage(bitmap, 0, 0, width, height);
      },
    };
  }

  /** A layer of patches: `colour(patch)` is a colour, or null for none. Drawn when first shown. */
  function ofPatches(id, title, area, colour, legend) {
    let cells = null;
    return {
      id, title, legend,
      draw(context) {
        cells ??= filled(area, colour);
        context.imageSmoothingEnabled = false;
        context.drawImage(cells, 0, 0, cells.width * area.unit, cells.height * area.unit);
      },
    };
  }

  /** A canvas with one pixel for every `unit` pixels of the area, the grid that all patches share. */
  function filled(area, colour) {
    const canvas = new OffscreenCanvas(area.cellCols, area.cellRows);
    const context = canvas.getContext("2d");
    const image = context.createImageData(canvas.width, canvas.height);
    for (let cell = 0; cell < area.patchOfCell.length; cell++) {
      const patch = area.patchOfCell[cell];
      const rgb = patch < 0 ? null : area.memo(colour, patch);
      if (rgb) image.data.set([...rgb, 255], 4 * cell);
    }
    context.putImageData(image, 0, 0);
    return canvas;
  }

  function swatches(named) {
    const items = named.map(([name, colour]) => {
      const swatch = element("span", { className: "swatch" });
      if (colour) swatch.style.background = colours.css(colour);
      else swatch.classList.add("blank");
      return element("li", {}, swatch, name);
    });
    return () => element("ul", { className: "swatches" }, ...items);
  }

  function ramp(bytes, low, high) {
    return () => {
      const line = element("div", { className: "ramp" });
      line.style.background = colours.gradient(bytes);
      return element("div", {}, line, element("div", { className: "ends" },
        element("span", {}, low), element("span", {}, high)));
    };
  }

  const text = (words) => () => element("p", {}, words);

  /** All layers that an area has something for. */
  function of(page, area) {
    const { classes, run } = page;
    const ofClasses = classes.map((each) => [each.name, each.colour]);
    const made = page.composites.map((one, i) =>
      ofPicture(`picture-${i}`, one.name[0].toUpperCase() + one.name.slice(1), area.pictures[i], text(one.note)));
    if (area.labels) {
      made.push(ofPicture("labels", `Labels (${page.scheme})`, area.labels,
        swatches([...ofClasses, ["no label", null]]), true));
    }
    if (area.probabilities) {
      made.push(
        ofPatches("predicted", "Predicted class", area,
          (patch) => classes[area.predicted(patch)].colour, swatches(ofClasses)),
        ofPatches("uncertainty", "Uncertainty", area,
          (patch) => colours.onRamp(page.ramp, area.entropy(patch)), ramp(page.ramp, "sure", "undecided")),
      );
      if (area.labels) {
        made.push(ofPatches("suspect", "Suspect labels", area,
          (patch) => [colours.BELIEVED, colours.SUSPECT][area.suspect[patch]] ?? null,
          swatches([["suspect", colours.SUSPECT], ["not suspect", colours.BELIEVED], ["no label", null]])));
      }
    }
    if (area.error) {
      made.push(ofPatches("error", "Reconstruction error", area,
        (patch) => colours.onRamp(page.ramp, area.error[patch] / area.errorTop),
        ramp(page.ramp, "0", `${area.errorTop.toPrecision(2)} ${run.unit} or more`)));
    }
    return made;
  }

  return { of };
})();
