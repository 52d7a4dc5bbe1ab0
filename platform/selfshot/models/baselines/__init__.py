"""Other authors' methods under the interface of ours (Table 11)."""
