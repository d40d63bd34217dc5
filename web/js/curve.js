/**
 * A curve in a box that stretches with its node.
 */
const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 100;
const HEIGHT = 50;
/** How many points the smooth line looks back over, as a share of all. */
const MEMORY = 0.1;

/**
 * An empty picture for {@link drawCurve}.
 * @returns {SVGSVGElement}
 */
export function makeCurve() {
  const picture = document.createElementNS(SVG, "svg");
  picture.setAttribute("class", "e4t-curve");
  picture.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  picture.setAttribute("preserveAspectRatio", "none");
  picture.setAttribute("role", "img");
  return picture;
}

/**
 * Draws values from left to right; with many of them, pale, and their mean over the last ones on top.
 * @param {SVGSVGElement} picture from {@link makeCurve}.
 * @param {number[]} values at equal distances.
 * @param {number} share of the width that they fill, 0 to 1: the rest is still to come.
 * @param {string} text what the picture says, for those who do not see it.
 */
export function drawCurve(picture, values, share, text) {
  const lines = [["e4t-line", values]];
  if (values.length > 24) lines.unshift(["e4t-line e4t-pale", values]), (lines[1][1] = smooth(values));
  picture.replaceChildren(...lines.map(([style, line]) => lineOf(style, line, values, share)));
  picture.setAttribute("aria-label", text);
}

/** The mean of each value and those before it, the older the less. */
function smooth(values) {
  const keep = 1 - 1 / Math.max(1, values.length * MEMORY);
  let mean = values[0];
  return values.map((value) => (mean = keep * mean + (1 - keep) * value));
}

function lineOf(style, line, values, share) {
  const low = Math.min(...values);
  const span = Math.max(...values) - low || 1;
  const step = (share * WIDTH) / Math.max(1, line.length - 1);
  const points = line.map((value, index) => `${index * step},${HEIGHT - 3 - ((value - low) / span) * (HEIGHT - 6)}`);
  const drawn = document.createElementNS(SVG, "polyline");
  drawn.setAttribute("class", style);
  drawn.setAttribute("points", points.join(" "));
  return drawn;
}
