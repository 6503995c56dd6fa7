def draw_epoch(*a):
    pass
