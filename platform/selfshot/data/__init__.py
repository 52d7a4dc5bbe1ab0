"""Videos and annotations: frames, clips, the YouTube-VIS format."""
