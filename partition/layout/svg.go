package layout

import (
	"fmt"
	"html"
	"strings"
)

// Measures of the drawing, in pixels. A character of the 12 px monospace font is at most 7.3 wide.
const (
	svgWidth     = 1000
	svgMargin    = 16
	svgCell      = 58
	svgLine      = 16
	svgCharacter = 7.3
	svgLeast     = 56
)

// SVG is the drawing of the disks as a picture of its own: no scripts, no styles or fonts from elsewhere, and every text escaped.
func (p *Plan) SVG() []byte {
	var b strings.Builder
	y := svgMargin
	for _, one := range p.bars() {
		y = one.svg(&b, y)
	}
	head := fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" role="img" font-family="monospace" font-size="12">`+"\n", svgWidth, y, svgWidth, y)
	title := fmt.Sprintf("<title>%s</title>\n", html.EscapeString("Disks of layout "+p.LayoutSHA256[:min(12, len(p.LayoutSHA256))]))
	ground := fmt.Sprintf(`<rect width="%d" height="%d" fill="#ffffff"/>`+"\n", svgWidth, y)
	return []byte(head + title + ground + b.String() + "</svg>\n")
}

// svg draws one bar from y on and gives where the next one begins.
func (b bar) svg(out *strings.Builder, y int) int {
	const room = svgWidth - 2*svgMargin
	for _, line := range strings.Split(b.title, "\n") {
		y += svgLine
		svgText(out, svgMargin, y-4, room, line, "#1a1a1a", "bold")
	}
	x := svgMargin
	for k, w := range b.widths(room, svgLeast) {
		c := b.cells[k]
		dash := ""
		if c.kind == "free" {
			dash = ` stroke-dasharray="4 3"`
		}
		fmt.Fprintf(out, `<g><title>%s</title><rect x="%d" y="%d" width="%d" height="%d" fill="%s" stroke="#444444"%s/>`+"\n",
			html.EscapeString(strings.TrimSpace(c.name+" "+c.sizes+" "+c.use)), x, y, w, svgCell, colour(c.kind), dash)
		for n, text := range []string{c.name, c.sizes, c.use} {
			svgText(out, x+6, y+18+n*svgLine, w-10, text, "#1a1a1a", "normal")
		}
		out.WriteString("</g>\n")
		x += w
	}
	return y + svgCell + svgMargin
}

func svgText(out *strings.Builder, x, y, room int, text, fill, weight string) {
	text = cut(text, int(float64(room)/svgCharacter))
	fmt.Fprintf(out, `<text x="%d" y="%d" fill="%s" font-weight="%s" xml:space="preserve">%s</text>`+"\n", x, y, fill, weight, html.EscapeString(text))
}

// colour of a kind of cell: pale, so that black text is readable on all.
func colour(kind string) string {
	switch kind {
	case "esp":
		return "#ffe0b3"
	case "swap":
		return "#e6d5f5"
	case "filesystem":
		return "#cfe8cf"
	case "md":
		return "#cfe0f5"
	case "luks":
		return "#f5cfd6"
	case "lvm":
		return "#d2eeee"
	case "free":
		return "#ffffff"
	}
	return "#e8e8e8"
}
