"""Which patch of the image each word of a caption came from, as a PNG and as an HTML file."""
