"""The paper's mathematics as pure functions: arrays in, arrays out, no weights."""
