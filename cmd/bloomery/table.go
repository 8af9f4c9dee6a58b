package main

import (
	"encoding/csv"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// tableWidth is what a table is made to fit; -o wide shows what is cut.
const tableWidth = 100

// column is one column of a list.
type column[T any] struct {
	// name is the word for --columns.
	name, header string
	value        func(T) string
}

// cells renders rows with their header.
func cells[T any](columns []column[T], items []T) [][]string {
	rows := make([][]string, 1, len(items)+1)
	for _, c := range columns {
		rows[0] = append(rows[0], c.header)
	}
	for _, item := range items {
		var row []string
		for _, c := range columns {
			row = append(row, c.value(item))
		}
		rows = append(rows, row)
	}
	return rows
}

// plain makes a text fit to be shown on one line of a terminal: machines and operators write much of what a list shows.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, s)
}

// measure widens columns to what a row needs.
func measure(width []int, row []string) []int {
	for i, cell := range row {
		if i == len(width) {
			width = append(width, 1)
		}
		width[i] = max(width[i], utf8.RuneCountInString(plain(cell)))
	}
	return width
}

// fit takes from the widest columns until all fit into limit; 0 is no limit. The first column and the headers stay whole.
func fit(width []int, header []string, limit int) []int {
	width = slices.Clone(width)
	for limit > 0 {
		total, widest := 2*(len(width)-1), -1
		for i, w := range width {
			total += w
			if i > 0 && w > utf8.RuneCountInString(header[i]) && (widest < 0 || w > width[widest]) {
				widest = i
			}
		}
		if total <= limit || widest < 0 {
			break
		}
		width[widest]--
	}
	return width
}

// widths are those of a whole table, whose first row is its header.
func widths(rows [][]string, limit int) []int {
	var width []int
	for _, row := range rows {
		width = measure(width, row)
	}
	return fit(width, rows[0], limit)
}

// tableLine pads a row's cells to their columns' widths; empty ones are a dash, long ones are cut.
func tableLine(row []string, width []int) string {
	var b strings.Builder
	for i, cell := range row {
		if cell = plain(cell); cell == "" {
			cell = "-"
		}
		cell = firstRunes(cell, width[i])
		b.WriteString(cell)
		if i < len(row)-1 {
			b.WriteString(strings.Repeat(" ", width[i]-utf8.RuneCountInString(cell)+2))
		}
	}
	return b.String()
}

func writeTable(w io.Writer, rows [][]string, limit int) error {
	width := widths(rows, limit)
	for _, row := range rows {
		if _, err := fmt.Fprintln(w, tableLine(row, width)); err != nil {
			return err
		}
	}
	return nil
}

// writeCSV writes RFC 4180. A cell that a spreadsheet would take for a formula gets an apostrophe before it, which makes it text.
func writeCSV(w io.Writer, rows [][]string) error {
	out := csv.NewWriter(w)
	for _, row := range rows {
		safe := make([]string, len(row))
		for i, cell := range row {
			cell = plain(cell)
			if begin := strings.TrimSpace(cell); begin != "" && strings.ContainsRune("=+-@", rune(begin[0])) {
				cell = "'" + cell
			}
			safe[i] = cell
		}
		if err := out.Write(safe); err != nil {
			return err
		}
	}
	out.Flush()
	return out.Error()
}
