"""The demo's data and model, embedded: the generator of its text, and a small pre-trained BERT."""
