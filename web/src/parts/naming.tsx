// Names, notes and stars.

import { useState } from "preact/hooks";
import { reader, useRun, type Run } from "../store";
import { decimals, Message } from "./basics";

export function Naming({ run, latent, concept, level, auroc }: { run: Run; latent: number; concept: string | null; level: string | null; auroc: number | null }) {
  useRun(run);
  const said = run.names.get(latent), [error, setError] = useState(""), [saved, setSaved] = useState(""), [who, setWho] = useState(reader());
  const starred = said?.stars.includes(`person:${who}`) ?? false, others = said?.stars.filter((by) => by !== `person:${who}`) ?? [];
  const own = said?.names.find((each) => each.by === `person:${who}`)?.name ?? "", note = said?.notes.find((each) => each.by === `person:${who}`)?.note ?? "";
  const say = (entry: { name?: string; note?: string; star?: boolean }) =>
    run.say(latent, entry).then(() => { setError(""); setSaved("Saved."); }, (e: Error) => { setError(e.message); setSaved(""); });
  return (
    <section class="naming" aria-label="name">
      <ul class="sources">
        {concept && <li><b>{concept}</b> <span class="quiet">{level}, {run.facts.labels === "masks" ? "by its masks" : "by captions"}, AUROC {decimals(auroc)}</span></li>}
        {said?.names.map((each) => <li key={each.by}><b>{each.name}</b> <span class="quiet">by {each.by.replace("person:", "")}{each.score ? `, AUROC ${decimals(each.score.auroc)} on ${each.score.images} held-out images` : ""}</span></li>)}
        {said?.notes.map((each) => <li key={each.by + each.at}>{each.note} <span class="quiet">noted by {each.by.replace("person:", "")}</span></li>)}
        {others.length > 0 && <li class="quiet">★ starred by {others.map((by) => by.replace("person:", "")).join(", ")}</li>}
      </ul>
      {!run.isStatic && (
        <form class="names" onSubmit={(e) => { e.preventDefault(); const data = new FormData(e.currentTarget); const name = String(data.get("name")).trim(), noted = String(data.get("note")).trim(); const entry = { ...(name !== own && { name }), ...(noted !== note && { note: noted }) }; if (Object.keys(entry).length) void say(entry); }}>
          <button type="button" class="star-button" aria-pressed={starred} onClick={() => void say({ star: !starred })}>{starred ? "★ starred" : "☆ star"}</button>
          <label>Your name for it<input key={`n${own}`} name="name" maxLength={200} defaultValue={own} /></label>
          <label>Note<input key={`t${note}`} name="note" maxLength={10000} defaultValue={note} /></label>
          <label>You are<input name="who" maxLength={60} value={who} onChange={(e) => { localStorage.setItem("tide-reader", e.currentTarget.value); setWho(reader()); }} /></label>
          <button type="submit">Save</button>
          <span role="status" class="quiet">{saved}</span>
        </form>
      )}
      {error && <Message kind="error">{error}</Message>}
    </section>
  );
}
