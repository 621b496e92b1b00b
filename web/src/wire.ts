// What the server sends, and how it is read.

export interface IndexState { state: "ready" | "missing" | "waiting" | "building" | "failed"; stage: string; done: number; total: number; message: string }
export interface RunInfo { id: string; name: string; folder: string; steers: boolean; index: IndexState; block?: number; nLatents?: number; kind?: string; pipeline?: string }
export interface RunList { static: boolean; runs: RunInfo[] }
export interface Concept { concept: string; level: string; count: number; best: number; auroc: number }
export interface Facts {
  nLatents: number; nImages: number; dead: number; grid: number[]; map: number[]; timesteps: number[]; block: number;
  pipeline: string; data: string; labels: string; sae: string; stamp: string; picture: [number, number]; tile: [number, number]; sheetSide: number; onCard: number;
  concepts: Concept[]; heat: number[][]; veil: { grey: number; kept: number; power: number };
  /** Of clips: all frames, those of tokens, those shown, and of each of these the frame of the maps. */
  frames?: { total: number; tokens: number; shown: number[]; map: number[] };
}
export interface Shown { image: number; value: number; heat: string; name: string; caption: string }
export interface Near { latent: number; cosine: number }
export interface Latent {
  latent: number; frequency: number; step: number; strongest: number; concept: string | null; level: string | null; auroc: number | null;
  monosemanticity: number | null; images: number; frequencies: number[]; means: number[]; meanMap: string; top: Shown[]; drawn: Shown[];
  fires: Near[]; writes: Near[]; frameFrequencies?: number[]; frameMeans?: number[]; motion?: number | null;
}
export interface Said {
  name: string | null; by: string | null; score: { auroc: number; images: number } | null; starred: boolean; stars: string[];
  notes: { by: string; at: string; note: string }[]; names: { by: string; name: string; score: { auroc: number; images: number } | null }[];
}
export interface Where { latents: number[]; threshold?: number; grow?: number; smooth?: number; hold?: number }
export interface Change { latents: number[]; how: "scale" | "add"; by: number; steps?: [number, number] | null; tokens?: number[] | null; where?: Where | null }
export interface Recipe { prompt: string; seed: number; n_steps: number; guidance_scale: number; changes: Change[]; sae?: string | null }
export interface SavedRecipe { name: string; recipe?: Recipe; message?: string }
export interface JobEvent {
  event: "loading" | "step" | "image" | "done" | "cancelled" | "failed"; which?: "before" | "after"; number?: number; step?: number; of?: number;
  jpeg?: string; png?: string; webp?: string; frames?: number; strength?: number; message?: string; remark?: string | null;
}
export interface Card { latent: number; frequency: Float32Array; images: Int32Array; maps: Uint8Array }
export interface Columns {
  frequency: Float32Array; strongest: Float32Array; auroc: Float32Array; monosemanticity: Float32Array; step: Int32Array; images: Int32Array; concept: Int32Array;
}

type Numbers = Float32Array | Int32Array | Uint8Array;
export interface Packed { [name: string]: { values: Numbers; shape: number[] } }

/** Arrays of a message as tide/browser/wire.py packs them. */
export function unpack(buffer: ArrayBuffer): Packed {
  const length = new DataView(buffer).getUint32(0, true);
  const entries = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length))) as { name: string; kind: string; shape: number[]; start: number }[];
  const found: Packed = {};
  for (const { name, kind, shape, start } of entries) {
    const at = 4 + length + start, n = shape.reduce((a, b) => a * b, 1);
    const values = kind === "f32" ? new Float32Array(buffer, at, n) : kind === "i32" ? new Int32Array(buffer, at, n) : new Uint8Array(buffer, at, n);
    found[name] = { values, shape };
  }
  return found;
}

export function bytes(text: string): Uint8Array {
  return Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
}

/** An error whose message is for the reader. */
export class Refused extends Error {}

export async function ask(path: string, options?: RequestInit): Promise<Response> {
  let answer: Response;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if ((error as Error).name === "AbortError") throw error;
    throw new Refused("The server does not answer. Is tide browse still running?");
  }
  if (!answer.ok) {
    let message = `${answer.status} ${answer.statusText}`;
    try {
      const text = await answer.text();
      try { message = (JSON.parse(text) as { message?: string }).message ?? message; } catch { if (text && !text.startsWith("<")) message = text; }
    } catch { /* the status says enough */ }
    throw new Refused(message);
  }
  return answer;
}

export const json = async <T>(path: string): Promise<T> => (await ask(path)).json() as Promise<T>;
export const post = async <T>(path: string, body: unknown): Promise<T> =>
  (await ask(path, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) })).json() as Promise<T>;
export const packed = async (path: string): Promise<Packed> => unpack(await (await ask(path)).arrayBuffer());
