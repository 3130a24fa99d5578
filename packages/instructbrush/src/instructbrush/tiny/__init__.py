"""The embedded base model: a miniature of the InstructPix2Pix stack, and the procedural and photographic edits that it learns from."""
