"use strict";

/* The layers of an area: pictures at full resolution, and one colour a patch. */
const layers = (() => {
  const SUSPECT = [214, 0, 122];
  const BELIEVED = [190, 194, 198];

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
    const colours = Array.from({ length: area.count }, (_, patch) => colour(patch));
    area.patchOfCell.forEach((patch, cell) => {
      if (colours[patch]) image.data.set([...colours[patch], 255], 4 * cell);
    });
    context.putImageData(image, 0, 0);
    return canvas;
  }

  function swatches(named) {
    return () => element("ul", { className: "swatches" }, ...named.map(([name, colour]) => {
      const swatch = element("span", { className: colour ? "swatch" : "swatch blank" });
      if (colour) swatch.style.background = css(colour);
      return element("li", {}, swatch, name);
    }));
  }

  /** The colour of a share from 0 to 1 on a ramp (a Uint8Array of 256 colours). */
  function onRamp(ramp, share) {
    const place = 3 * Math.max(0, Math.min(255, Math.round(255 * share)));
    return [ramp[place], ramp[place + 1], ramp[place + 2]];
  }

  function rampLegend(ramp, low, high) {
    const stops = Array.from({ length: 9 }, (_, i) => css(onRamp(ramp, i / 8)));
    return () => {
      const line = element("div", { className: "ramp" });
      line.style.background = `linear-gradient(90deg, ${stops.join(", ")})`;
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
          (patch) => onRamp(page.ramp, area.entropy(patch)), rampLegend(page.ramp, "sure", "undecided")),
      );
      if (area.labels) {
        made.push(ofPatches("suspect", "Suspect labels", area,
          (patch) => [BELIEVED, SUSPECT][area.suspect[patch]] ?? null,
          swatches([["suspect", SUSPECT], ["not suspect", BELIEVED], ["no label", null]])));
      }
    }
    if (area.distance) {
      const share = area.distance.filter((each) => each > 1).length / area.count;
      made.push(ofPatches("domain", "Out of domain", area,
        (patch) => (area.distance[patch] > 1 ? SUSPECT : BELIEVED),
        swatches([[`outside, ${perCent(share, 1)}`, SUSPECT], ["inside", BELIEVED]])));
    }
    if (area.error) {
      made.push(ofPatches("error", "Reconstruction error", area,
        (patch) => onRamp(page.ramp, area.error[patch] / area.errorTop),
        rampLegend(page.ramp, "0", `${area.errorTop.toPrecision(2)} ${run.unit} or more`)));
    }
    return made;
  }

  return { of };
})();
