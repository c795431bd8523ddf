//! Reads an image directory as a restore would, and says what is wrong with it.
