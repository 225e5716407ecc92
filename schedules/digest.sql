-- Whom the weekly digest goes to: one row a person. The template uses name, rated_count and favourite.
-- A row whose address is none is counted and listed by maintd, never mailed; of two rows with the same
-- address the first gets the mail.
WITH ranked AS (
    SELECT
        rating.user_id,
        title.name AS favourite,
        COUNT(*) OVER (PARTITION BY rating.user_id) AS rated_count,
        ROW_NUMBER() OVER (
            PARTITION BY rating.user_id
            ORDER BY rating.stars DESC, rating.rated_at DESC, rating.title_id
        ) AS place
    FROM rating
    JOIN title ON title.id = rating.title_id
)
SELECT
    app_user.id AS user_id,
    app_user.email,
    app_user.name,
    COALESCE(ranked.rated_count, 0) AS rated_count,
    ranked.favourite
FROM app_user
LEFT JOIN ranked ON ranked.user_id = app_user.id AND ranked.place = 1
WHERE app_user.wants_digest
ORDER BY app_user.id
