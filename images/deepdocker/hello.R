# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# An example that shows that Shiny works. SHINY_APPS names the folder with your own.

library(shiny)

ui <- fluidPage(
  titlePanel("Hello from Shiny"),
  sliderInput("bins", "Bins", min = 5, max = 50, value = 20),
  plotOutput("waiting")
)

server <- function(input, output) {
  output$waiting <- renderPlot(
    hist(faithful$waiting, breaks = input$bins, main = NULL, xlab = "Minutes to the next eruption")
  )
}

shinyApp(ui, server)
