"""Files of tensors: headers read and checked without reading a tensor, tensors read one at a time, files written whole."""
