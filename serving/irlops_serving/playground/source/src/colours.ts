/** A diverging scale of nine colours around the reward at which right and wrong are equally likely. */

import type { TokenReward } from "./types";

const EACH_SIDE = 4;

export interface Scale {
  centre: number;
  /** Distance from the centre at which the colours end; never 0. */
  extent: number;
}

/** Ends at the 98th percentile of the distances, so that one outlier does not turn all others pale. */
export function scaleOf(tokens: TokenReward[][], centre: number): Scale {
  const distances = tokens.flat().map((token) => Math.abs(token.reward - centre));
  distances.sort((a, b) => a - b);
  const extent = distances[Math.floor((distances.length - 1) * 0.98)] ?? 0;
  return { centre, extent: extent || 1 };
}

/** From -4 (far below even) to 4 (far above). */
export function levelOf(reward: number, scale: Scale): number {
  const share = (reward - scale.centre) / scale.extent;
  return Math.max(-EACH_SIDE, Math.min(EACH_SIDE, Math.round(share * EACH_SIDE)));
}

export const LEVELS = [-4, -3, -2, -1, 0, 1, 2, 3, 4];

export function shown(value: number): string {
  const rounded = value.toFixed(2);
  return (Number(rounded) > 0 ? "+" : "") + rounded.replace("-0.00", "0.00").replace("-", "−");
}

/** Never 0 or 100: nothing is certain. */
export function percent(chance: number): string {
  const rounded = Math.round(chance * 100);
  if (rounded > 99) return "> 99 %";
  return rounded < 1 ? "< 1 %" : `${rounded} %`;
}
