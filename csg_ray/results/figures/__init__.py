"""What trained encoders see in real images, as pictures in the manner of the paper."""
