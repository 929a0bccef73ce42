"""What a media file may ask for: a few bytes of a header, from anywhere, can ask for any amount of memory."""

# FFmpeg's names of the containers that are read: none of them opens other files or addresses, as a playlist would.
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,wav,flac"
PROTOCOLS = "file"
STREAMS = 32
SECONDS = 24 * 3600  # of the whole file
PIXELS = 2**24  # of a picture; 4K has 9 million
SIDE = 2**13  # pixels
BYTES = 2**28  # of the packets that are decoded for one window
PACKETS = 100_000  # the same
SAMPLES = 2**26  # of the sound decoded for one window, on all channels
CHANNELS = 8  # of sound; PyAV reads past the end of a frame that has more
RATE = 768_000  # Hz, of sound
