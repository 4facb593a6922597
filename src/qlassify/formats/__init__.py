"""Files of tensors: headers checked before anything is read, tensors read one at a time, files written whole."""
