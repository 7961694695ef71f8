"""From frames to tokens: detection, tracking and features of objects."""
