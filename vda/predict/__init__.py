"""`vda predict`: the classes of every frame of a video, a folder of images or one image, as pictures and as files."""
