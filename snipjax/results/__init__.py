"""From runs to tables, pages and pictures."""
