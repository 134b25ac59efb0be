"""Drawing: text, tables, glyphs, colours, the scatter. Knows no widget."""
