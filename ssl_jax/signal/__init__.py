"""Pure functions on audio and frames: fbank, MFCC, deltas, span masks."""
