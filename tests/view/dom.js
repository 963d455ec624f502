// A document of the few things that page.js uses: runs the script of a page and prints all text that it shows.
const fs = require("fs");
class Element {
  constructor(tag) { this.tag = tag; this.children = []; this.handlers = {}; this.attributes = {}; this.value = 0; }
  append(...nodes) { for (const node of nodes) this.children.push(node); }
  replaceChildren(...nodes) { this.children = nodes; }
  addEventListener(name, handler) { this.handlers[name] = handler; }
  setAttribute(name, value) { this.attributes[name] = value; }
  click() { this.handlers.click(); }
  set textContent(text) { this.children = [String(text)]; }
  set innerHTML(text) { throw new Error("innerHTML"); }
  get text() { return this.children.map((child) => child instanceof Element ? child.text : String(child)).join(" "); }
}
const elements = {};
global.document = {
  createElement: (tag) => new Element(tag),
  createDocumentFragment: () => new Element("fragment"),
  getElementById: (id) => elements[id] ||= new Element(id),
};
const html = fs.readFileSync(process.argv[2], "utf8");
const begin = html.indexOf("<script>");
if (begin >= 0) eval(html.slice(begin + "<script>".length, html.indexOf("</script>")));
for (const id of ["section", "group"]) if (elements[id]) elements[id].handlers.change();
const show = () => console.log(Object.values(elements).map((element) => element.text).join("\n"));
show();
for (const button of elements.episodes ? elements.episodes.children : []) { button.click(); show(); }
