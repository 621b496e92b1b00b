// What is sent as it is: the page, and its icon.
import { copyFileSync } from "node:fs";
for (const name of ["index.html", "icon.svg"]) copyFileSync(`src/${name}`, `../tide/browser/static/${name}`);
