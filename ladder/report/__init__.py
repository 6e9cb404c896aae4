"""Reports: in the terminal, as a page, as a picture, in a notebook."""
