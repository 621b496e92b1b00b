// Clips: an image that plays, and what stops it.

import type { JSX } from "preact";
import { clock, useFrame } from "../clock";

type Props = JSX.IntrinsicElements["img"] & { frames?: number };

/** An image, or a clip whose frames lie side by side in it, of which one is shown. */
export function Clip({ frames = 1, style, class: name, ...rest }: Props) {
  const frame = useFrame(frames);
  if (frames === 1) return <img class={name} style={style} {...rest} />;
  return <span class={`clip ${(name as string | undefined) ?? ""}`} style={style}><img {...rest} style={{ width: `${100 * frames}%`, transform: `translateX(${(-100 * frame) / frames}%)` }} /></span>;
}

/** Plays and stops all clips of the page, and chooses the frame that they show. */
export function Player({ frames, total }: { frames: number; total: number }) {
  const frame = useFrame(frames);
  return (
    <div class="player" role="group" aria-label="clips">
      <button type="button" aria-pressed={clock.playing} onClick={() => clock.play(!clock.playing)}>{clock.playing ? "Pause" : "Play"}</button>
      <label>frame {frame + 1} of {frames}{total > frames && ` (of ${total})`}<input type="range" min="0" max={frames - 1} value={frame} onInput={(e) => clock.show(Number(e.currentTarget.value))} /></label>
    </div>
  );
}
