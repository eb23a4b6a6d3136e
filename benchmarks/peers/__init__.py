"""planaria beside what people use today, on the streams of the field, at equal memory and passes over the data."""
