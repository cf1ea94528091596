"""From notebooks to HTML reports."""
