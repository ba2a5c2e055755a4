"""What the demo needs without network: the generator of its text, and a small pre-trained BERT."""
